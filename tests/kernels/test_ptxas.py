"""Launches that would fail for their registers, and spills: the emulation cannot see them, the assembler tells."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from tests.kernels.ptxas import ARCHITECTURES, Kernel, all_kernels, problems

ROOT = Path(__file__).parents[2]
pytestmark = [
    pytest.mark.requires_nvcc,
    pytest.mark.skipif(shutil.which("nvcc") is None, reason="no CUDA compiler on this machine"),
]
# Words of a kernel's symbol, and the bytes that a thread of it may spill.
SPILLS_ALLOWED = {("backward_kernel", "bfloat16", "Li8ELi2E"): 44}


@pytest.fixture(scope="module")
def kernels(tmp_path_factory: pytest.TempPathFactory) -> list[Kernel]:
    return all_kernels(ROOT / "csrc", tmp_path_factory.mktemp("ptxas"))


def test_every_kernel_launches_with_its_largest_block_and_spills_nothing(kernels: list[Kernel]) -> None:
    num_sources = len(list((ROOT / "csrc" / "cuda").glob("*.cu")))
    assert len({kernel.source for kernel in kernels}) == num_sources
    assert {kernel.architecture for kernel in kernels} == {f"sm_{a}" for a in ARCHITECTURES}
    assert problems(kernels, SPILLS_ALLOWED) == []


def test_two_blocks_of_the_norms_backward_pass_fit_a_multiprocessor(kernels: list[Kernel]) -> None:
    """It is launched with at most half of its largest block, up to hidden 8,192 in bf16."""
    wide = [kernel for kernel in kernels if kernel.has("rms_norm_cu", "backward_kernel")]
    assert len(wide) == 4 * len(ARCHITECTURES)
    assert all(kernel.block == 1024 and kernel.registers <= 64 for kernel in wide)


def test_one_block_of_the_fused_cross_entropy_has_a_multiprocessor_to_itself(kernels: list[Kernel]) -> None:
    """The second pass over a row then finds much of it in the first-level cache."""
    both = [kernel for kernel in kernels if kernel.has("cross_entropy_kernel", "CrossEntropyPassE2")]
    assert len(both) == 4 * len(ARCHITECTURES)
    assert all(kernel.registers > 32 for kernel in both)
