"""Faults planted in the CUDA sources, one at a time: the checks find each of them."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import pytest

from tests.kernels.host_cuda import build, load, why_not
from tests.kernels.host_cuda.build import ROOT
from tests.kernels.host_cuda.exercise import check_cases
from tests.kernels.host_cuda.sanitizers import exercise_with
from tests.kernels.ptxas import kernels_of, problems

pytestmark = [pytest.mark.slow, pytest.mark.skipif(why_not() is not None, reason=str(why_not()))]


@dataclass(frozen=True)
class Fault:
    """A change of a source, the check that finds it and its words, and a word of the cases that meet it."""

    name: str
    source: str
    right: str
    wrong: str
    found_by: Literal["results", "address", "thread", "registers"]
    words: str
    case: str = ""


FAULTS = [
    Fault("a barrier is removed", "cross_entropy.cu", "  __syncthreads();\n  static_assert", "  static_assert",
          "thread", "data race", "shard 45"),
    Fault("a row is overwritten before its target was read", "cross_entropy.cu",
          "    __syncthreads();  // the target's logit is read\n", "", "thread", "data race", "head 131"),
    Fault("two rows share the memory of their sums", "rms_norm.cu", "shared[turn]", "shared[0]",
          "thread", "data race", "norm of a sum 4224"),
    Fault("one item too many", "swiglu.cu", "item < items", "item <= items", "address", "heap-buffer-overflow", "gate"),
    Fault("rows that miss a boundary are read in packs", "cross_entropy.cu",
          "aligned(logits) && stride % kWide<T> == 0", "aligned(logits)", "address", "misaligned address", "head 131"),
    Fault("half a warp's mask", "cross_entropy.cu", "0xffffffffu", "0x0000ffffu",
          "results", "not in the mask", "shard"),
    Fault("a statistic rounded to the wrong type", "cross_entropy.cu", "to_float(values[target])",
          "to_float(from_float<bf16>(to_float(values[target])))", "results", "is off by", "head"),
    Fault("the columns behind the last pack are left out", "cross_entropy.cu",
          "for (int64_t column = whole + threadIdx.x; column < columns;", "for (int64_t column = columns; column < 0;",
          "results", "is off by", "head"),
    Fault("the stride of another operand", "swiglu.cu", "store_pack<T, N>(dx + row * 2 * width + column, gate)",
          "store_pack<T, N>(dx + row * width + column, gate)", "results", "is off by", "gate"),
    Fault("the token's weight is left out", "cross_entropy.cu", "(column == target ? scale : 0.0f)",
          "(column == target ? 1.0f : 0.0f)", "results", "is off by", "head"),
    Fault("a barrier that not all threads reach", "rms_norm.cu", "float mean = block_sum(dot, shared)",
          "if (threadIdx.x < 7) __syncthreads();\n    float mean = block_sum(dot, shared)",
          "results", "deadlock", "norm 129"),
    Fault("a tile is read before it is written", "fp8.cu", "  __syncthreads();\n  int lane", "  int lane",
          "results", "is off by", "eight bit 5 3"),
    Fault("columns of a tile that lie beyond the matrix", "fp8.cu", "i < kTile && first_column + i < o.columns;",
          "i < kTile;", "address", "heap-buffer-overflow", "eight bit 5 3"),
    Fault("four rows become columns in another order", "fp8.cu", "lower_left, 0x7632)", "lower_left, 0x7623)",
          "results", "is off by", "eight bit"),
    Fault("a block too large for its registers", "rms_norm.cu",
          "__global__ void __launch_bounds__(kMaxThreads)\n    backward_kernel(", "__global__ void backward_kernel(",
          "registers", "do not suffice"),
]  # fmt: skip


@pytest.mark.parametrize("fault", FAULTS, ids=[fault.name for fault in FAULTS])
def test_a_planted_fault_is_found(fault: Fault, tmp_path: Path) -> None:
    csrc = tmp_path / "csrc"
    shutil.copytree(ROOT / "csrc", csrc)
    source = csrc / "cuda" / fault.source
    text = source.read_text()
    assert fault.right in text, "the source has changed: plant the fault where its line is now"
    source.write_text(text.replace(fault.right, fault.wrong))
    if fault.found_by == "results":
        try:
            found = "\n".join(check_cases(load(build(csrc=csrc)), fault.case, ["forward"]))
        except RuntimeError as error:
            found = str(error)
        assert found and fault.words in found, found
    elif fault.found_by == "registers":
        if shutil.which("nvcc") is None:
            pytest.skip("no CUDA compiler on this machine")
        found = "\n".join(problems(kernels_of(source, csrc, tmp_path / "nvcc"), {}))
        assert fault.words in found, found
    else:
        result = exercise_with(fault.found_by, build(fault.found_by, csrc), "--only", fault.case)
        assert result.returncode != 0 and fault.words in result.stderr, result.stdout + result.stderr
