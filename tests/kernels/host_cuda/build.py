"""Compiles csrc/cuda with the host's compiler, object by object, each kept under a hash of all that it depends on."""

from __future__ import annotations

import ctypes
import hashlib
import importlib.util
import os
import re
import shutil
import subprocess
import sysconfig
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from importlib.machinery import ExtensionFileLoader
from pathlib import Path
from types import ModuleType
from typing import Literal

import pybind11

from tests.kernels.host_cuda.rewrite import rewrite

HERE = Path(__file__).parent
ROOT = HERE.parents[2]
CACHE = ROOT / "build" / "host_cuda"

Sanitizer = Literal["none", "address", "thread"]
Order = Literal["forward", "reverse", "random"]

FLAGS = ["-std=c++17", "-O1", "-fPIC", "-fvisibility=hidden", "-fno-gnu-unique", "-fno-strict-aliasing", "-w"]
SANITIZER_FLAGS: dict[Sanitizer, list[str]] = {
    "none": [],
    "address": ["-g1", "-fsanitize=address,undefined", "-fno-sanitize-recover=undefined"],
    "thread": ["-g1", "-fsanitize=thread"],
}
# Compiled once for all: what a sanitizer is to see are the kernels, and it hears of the fibres from the scheduler.
UNSANITIZED = ("scheduler.cpp", "bindings.cpp")


def why_not() -> str | None:
    """Why the emulation cannot be built on this machine."""
    return None if shutil.which("g++") else "no g++ on this machine"


def build(sanitizer: Sanitizer = "none", csrc: Path = ROOT / "csrc") -> Path:
    """The extension made of `csrc`/cuda; one that needs a sanitizer is loaded where that is preloaded (`runtime`)."""
    sources = [*sorted((csrc / "cuda").glob("*.cu")), csrc / "cuda" / "bindings.cpp", HERE / "scheduler.cpp"]
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        objects = list(pool.map(lambda source: _compile(source, sanitizer, csrc), sources))
    flags = ["-shared", *SANITIZER_FLAGS[sanitizer]]
    key = _digest(flags, *(path.name for path in objects))
    return _make(f"_kernels_cuda-{key}.so", [*flags, *map(str, objects)])


def load(path: Path) -> ModuleType:
    """The extension at `path`, as a module."""
    name = f"{path.stem}._kernels_cuda"  # pybind11 knows modules by their names: one of its own for each file
    loader = ExtensionFileLoader(name, str(path))
    spec = importlib.util.spec_from_loader(name, loader)
    assert spec is not None
    module = importlib.util.module_from_spec(spec)
    loader.exec_module(module)
    return module


def configure(module: ModuleType, order: Order = "forward", seed: int = 0, multiprocessors: int = 2) -> None:
    """The order in which the threads of a block and the blocks run from now on, and the size of the GPU."""
    assert module.__file__ is not None
    number = ("forward", "reverse", "random").index(order)
    ctypes.CDLL(module.__file__).host_cuda_configure(number, ctypes.c_uint(seed), multiprocessors)


def runtime(sanitizer: Sanitizer) -> str:
    """The sanitizer's library, for LD_PRELOAD."""
    names = {"address": ["libasan.so", "libubsan.so"], "thread": ["libtsan.so"]}[sanitizer]
    return " ".join(_run(["g++", f"-print-file-name={name}"]).strip() for name in names)


def _compile(source: Path, sanitizer: Sanitizer, csrc: Path) -> Path:
    text = source.read_text()
    flags = [*FLAGS, f"-I{HERE / 'include'}"]
    flags += [] if source.name in UNSANITIZED else SANITIZER_FLAGS[sanitizer]
    if source.name == "bindings.cpp":
        flags = [*flags, "-O0", f"-I{pybind11.get_include()}", f"-I{sysconfig.get_paths()['include']}"]
    key = _digest(flags, text, *_included(text, csrc), *(_texts_of_this_folder()))
    target = f"{source.stem}-{key}.o"
    generated = CACHE / f"{source.stem}-{key}.cpp"
    if not (CACHE / target).exists():
        CACHE.mkdir(parents=True, exist_ok=True)
        text = rewrite(text) if source.suffix == ".cu" else text
        generated.write_text(f'#line 1 "{source}"\n{text}')
    return _make(target, ["-c", *flags, f"-I{csrc}", str(generated)])


def _make(name: str, arguments: list[str]) -> Path:
    """The file `name` of the cache, made by the compiler where it is missing; processes may do so at the same time."""
    target = CACHE / name
    if not target.exists():
        unfinished = CACHE / f"{name}.{os.getpid()}"
        _run(["g++", *arguments, "-o", str(unfinished)])
        unfinished.replace(target)
    return target


def _run(command: list[str]) -> str:
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    if result.returncode != 0:
        raise RuntimeError(f"{' '.join(command)}\n{result.stderr}")
    return result.stdout


def _included(text: str, csrc: Path) -> list[str]:
    """The project's headers that `text` includes, and those that they include."""
    found = [(csrc / name).read_text() for name in re.findall(r'#include "([^"]+)"', text)]
    return [*found, *(header for outer in found for header in _included(outer, csrc))]


@cache
def _texts_of_this_folder() -> tuple[str, ...]:
    headers = [path.read_text() for path in sorted((HERE / "include").glob("*.h"))]
    return (*headers, (HERE / "rewrite.py").read_text(), _run(["g++", "--version"]), pybind11.__version__)


def _digest(*parts: object) -> str:
    return hashlib.sha256("\0".join(map(str, parts)).encode()).hexdigest()[:16]
