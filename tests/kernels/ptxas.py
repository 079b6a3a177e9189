"""What NVIDIA's assembler says of the kernels: registers, spills and the largest block, for each one and each GPU."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

ARCHITECTURES = ("80", "90")
REGISTERS_OF_A_MULTIPROCESSOR = 65_536
LARGEST_BLOCK = 1024

_COMPILED = re.compile(
    r"Compiling entry function '(?P<symbol>\w+)' for '(?P<architecture>\w+)'.*?"
    r"(?P<stores>\d+) bytes spill stores, (?P<loads>\d+) bytes spill loads.*?Used (?P<registers>\d+) registers",
    re.DOTALL,
)
_ENTRY = re.compile(r"\.entry (?P<symbol>\w+)\((?P<head>[^{]*)\{", re.DOTALL)


@dataclass(frozen=True)
class Kernel:
    """A kernel as it was compiled for one GPU."""

    source: str
    symbol: str
    architecture: str
    registers: int
    spilled_bytes: int
    """Stores and loads, of one thread."""
    block: int
    """Threads of the largest block that it may be launched with: __launch_bounds__, or what CUDA allows."""

    def has(self, *words: str) -> bool:
        return all(word in self.symbol for word in words)

    def registers_of_a_block(self) -> int:
        """They are handed out in eights to a thread."""
        return -(-self.registers // 8) * 8 * self.block


def kernels_of(source: Path, csrc: Path, folder: Path) -> list[Kernel]:
    """All instantiations in `source`, compiled as setup.py does it; `folder` takes what the compiler leaves."""
    folder.mkdir(parents=True, exist_ok=True)
    generations = [f"-gencode=arch=compute_{a},code=sm_{a}" for a in ARCHITECTURES]
    command = ["nvcc", "-c", str(source), "-o", str(folder / "object.o"), "-std=c++17", "-O3", f"-I{csrc}"]
    command += ["-Xptxas", "-v", "--keep", "--keep-dir", str(folder), *generations]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    if result.returncode != 0:
        raise RuntimeError(f"nvcc failed on {source.name}:\n{result.stderr}")
    blocks = dict(_largest_blocks(folder))
    return [
        Kernel(
            source=source.name,
            symbol=found["symbol"],
            architecture=found["architecture"],
            registers=int(found["registers"]),
            spilled_bytes=int(found["stores"]) + int(found["loads"]),
            block=blocks[found["symbol"]],
        )
        for found in _COMPILED.finditer(result.stderr + result.stdout)
    ]


def all_kernels(csrc: Path, folder: Path) -> list[Kernel]:
    sources = sorted((csrc / "cuda").glob("*.cu"))
    with ThreadPoolExecutor(2) as pool:
        return [k for ks in pool.map(lambda s: kernels_of(s, csrc, folder / s.stem), sources) for k in ks]


def problems(kernels: list[Kernel], spills_allowed: dict[tuple[str, ...], int]) -> list[str]:
    """Kernels that cannot be launched with their largest block, and those that spill more than they may."""
    found = []
    for kernel in kernels:
        name = f"{kernel.source} {kernel.symbol} for {kernel.architecture}"
        if kernel.registers_of_a_block() > REGISTERS_OF_A_MULTIPROCESSOR:
            found.append(f"{name}: {kernel.registers} registers do not suffice for a block of {kernel.block}")
        allowed = max((most for words, most in spills_allowed.items() if kernel.has(*words)), default=0)
        if kernel.spilled_bytes > allowed:
            found.append(f"{name}: spills {kernel.spilled_bytes} bytes, and may spill {allowed}")
    return found


def _largest_blocks(folder: Path) -> Iterator[tuple[str, int]]:
    for path in folder.glob("*.ptx"):
        for entry in _ENTRY.finditer(path.read_text()):
            bound = re.search(r"\.maxntid (\d+)", entry["head"])
            yield entry["symbol"], int(bound[1]) if bound else LARGEST_BLOCK
