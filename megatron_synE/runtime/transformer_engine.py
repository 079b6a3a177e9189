"""NVIDIA's Transformer Engine on this machine: whether its layers can run here, and why not.

megatron-core imports it wherever it finds it, prepared for an ImportError and nothing else: one that lacks its compiled
extension, a library or a GPU would end every run, also of jobs that do not ask for it.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import importlib.util
import sys
import warnings
from functools import cache

from packaging.specifiers import SpecifierSet

from megatron_synE.runtime.device import has_gpu

ACCEPTED_VERSIONS = ">=2.9,<2.12"
"""The range of Transformer Engine that megatron-core 0.16 names in its own extra."""

UNKNOWN_VERSION = "of unknown version"

INSTALL = f"pip install --no-build-isolation 'transformer-engine[pytorch]{ACCEPTED_VERSIONS}'"


@cache
def transformer_engine_version() -> str | None:
    """Version of the installed package, whether it works or not; None without one."""
    if importlib.util.find_spec("transformer_engine") is None:
        return None
    try:
        return importlib.metadata.version("transformer-engine")
    except importlib.metadata.PackageNotFoundError:
        return UNKNOWN_VERSION


def is_accepted(version: str) -> bool:
    """Whether megatron-core works with this version; builds that NVIDIA marks with a commit count as their version."""
    return version != UNKNOWN_VERSION and SpecifierSet(ACCEPTED_VERSIONS).contains(version, prereleases=True)


@cache
def transformer_engine_problem() -> str | None:
    """Why layers of Transformer Engine cannot run here, and the fix; None where they can. Imports it to know."""
    version = transformer_engine_version()
    if version is None:
        return f"Transformer Engine is not installed; on a machine with an NVIDIA GPU run `{INSTALL}`"
    if not is_accepted(version):
        taken = f"but megatron-core takes {ACCEPTED_VERSIONS}; run `{INSTALL}`"
        return f"Transformer Engine {version} is installed, {taken}"
    if not has_gpu():
        return f"Transformer Engine {version} needs an NVIDIA GPU, and torch sees none"
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the reason follows
            importlib.import_module("transformer_engine.pytorch")
    except Exception as error:  # whatever a half-installed package raises
        reason = next(iter(str(error).splitlines()), "")
        return (
            f"Transformer Engine {version} is installed, but cannot be imported "
            f"({type(error).__name__}: {reason}); uninstall it, then run `{INSTALL}`"
        )
    return None


def fp8_problem() -> str | None:
    """Why a working Transformer Engine cannot compute in FP8 on this GPU; None where it can."""
    from transformer_engine.pytorch import is_fp8_available

    available, reason = is_fp8_available(return_reason=True)
    return None if available else reason


def hide_unusable_transformer_engine() -> str | None:
    """Before megatron-core is imported: a Transformer Engine that cannot run here is as good as not installed.

    Returns:
        What is wrong with an installed one that a GPU would have run; None otherwise.
    """
    problem = transformer_engine_problem()
    if problem is None or transformer_engine_version() is None:
        return None
    for name in [name for name in sys.modules if name.startswith("transformer_engine.")]:
        del sys.modules[name]  # what a failed import has left
    sys.modules["transformer_engine"] = None  # type: ignore[assignment] # as the import system documents it
    return problem if has_gpu() else None
