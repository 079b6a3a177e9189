"""Which software and which machine this process runs on, as a record keeps it."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import socket
import subprocess
from pathlib import Path
from typing import Any

from megatron_synE import __version__

LIBRARIES = ("torch", "megatron-core", "transformers", "tokenizers", "numpy", "safetensors")
GIT_TIMEOUT_SECONDS = 20


def version(distribution: str) -> str | None:
    """Of an installed package; None where it is not installed."""
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return None


def versions(more: tuple[str, ...] = ()) -> dict[str, str]:
    """Python, this package and the libraries that numbers depend on → version; what is not installed is left out.

    Args:
        more: further distributions.
    """
    found = {name: version(name) for name in (*LIBRARIES, *more)}
    own = {"python": platform.python_version(), "megatron_synE": __version__}
    return own | {name: number for name, number in found.items() if number is not None}


def commit() -> str | None:
    """The git commit of this package's source, followed by `+changes` where files that git knows differ from it.

    None where the package is installed, and lies in no checkout of its own.
    """
    folder, file = Path(__file__).parent, Path(__file__).name
    # An environment may lie within somebody else's checkout: git has to know this very file.
    if _git(folder, "ls-files", "--error-unmatch", file) is None:
        return None
    head, changes = _git(folder, "rev-parse", "HEAD"), _git(folder, "status", "--porcelain", "--untracked-files=no")
    return None if head is None else head + ("+changes" if changes else "")


def machine() -> dict[str, Any]:
    """Name, operating system and number of processors of this machine."""
    return {"host": socket.gethostname(), "platform": platform.platform(), "num_processors": os.cpu_count()}


def _git(folder: Path, *arguments: str) -> str | None:
    """What git says; None where it is not installed, or fails."""
    command = ["git", "-C", str(folder), *arguments]
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=GIT_TIMEOUT_SECONDS, check=False, stdin=subprocess.DEVNULL
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None
