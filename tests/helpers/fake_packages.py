"""Installations of NVIDIA's packages, good and bad, made of a few lines in a folder on the path."""

from __future__ import annotations

import os
from pathlib import Path

NO_DRIVER = 'raise RuntimeError("Found no NVIDIA driver on your system.")\n'
NO_LIBRARY = 'raise OSError("libcudnn.so.9: cannot open shared object file")\n'

# Calls that only a GPU answers, under the names by which megatron-core imports them.
_OPTIMIZERS = """
class FusedAdam:
    def __init__(self, *args, **kwargs):
        raise RuntimeError("Found no NVIDIA driver on your system.")

class FusedSGD(FusedAdam):
    pass

def multi_tensor_applier(*args):
    raise RuntimeError("Found no NVIDIA driver on your system.")

multi_tensor_l2norm = multi_tensor_scale = multi_tensor_applier
"""


def install(folder: Path, name: str, modules: dict[str, str], version: str | None = None) -> Path:
    """A package with these modules (dotted name below `name`, "" for the package itself → source) in `folder`."""
    for module, source in {"": "", **modules}.items():
        path = folder.joinpath(name, *module.split("."))
        path.mkdir(parents=True, exist_ok=True)
        (path / "__init__.py").write_text(source)
    if version is not None:
        metadata = folder / f"{name}-{version}.dist-info" / "METADATA"
        metadata.parent.mkdir()
        metadata.write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
    return folder


def transformer_engine(folder: Path, source: str = "", version: str = "2.11.0") -> Path:
    """The shell of a Transformer Engine; `source` runs when its torch half is imported."""
    return install(folder, "transformer_engine", {"pytorch": source, "pytorch.optimizers": ""}, version)


def nvidia_apex(folder: Path) -> Path:
    """NVIDIA's Apex with its compiled extensions."""
    for extension in ("amp_C", "fused_weight_gradient_mlp_cuda"):
        install(folder, extension, {"": _OPTIMIZERS})
    return install(folder, "apex", {"optimizers": _OPTIMIZERS, "multi_tensor_apply": _OPTIMIZERS})


def other_apex(folder: Path) -> Path:
    """The package of that name on the package index, which has nothing to do with NVIDIA and needs another one."""
    return install(folder, "apex", {"": "from pyramid.session import UnencryptedCookieSessionFactoryConfig\n"})


def path_with(folder: Path) -> str:
    """PYTHONPATH with `folder` before all others."""
    return os.pathsep.join([str(folder), *filter(None, [os.environ.get("PYTHONPATH")])])
