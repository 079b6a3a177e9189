"""Gradient buffers on the host: cleared and scaled without taking memory for what stays zero."""

from __future__ import annotations

import sys

import pytest
import torch

from megatron_synE.kernels import _native, clear_, override, scale_written_

PAGE = 4096 // 4
MIB = 2**20
needs_kernels = pytest.mark.skipif(_native.extension("cpu") is None, reason="no compiled kernels were built")


def resident_bytes() -> int:
    with open("/proc/self/statm") as numbers:
        return int(numbers.read().split()[1]) * 4096


@pytest.mark.parametrize(("begin", "end"), [(0, 4 * PAGE), (3, 4 * PAGE - 5), (7, 9), (5, PAGE), (PAGE - 1, PAGE + 1)])
def test_everything_inside_is_cleared_and_nothing_else(begin: int, end: int) -> None:
    values = torch.ones(6 * PAGE)
    clear_(values[begin:end])
    assert not values[begin:end].any()
    assert values[:begin].all() and values[end:].all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_any_type_and_what_is_not_contiguous(dtype: torch.dtype) -> None:
    values = torch.ones(100, 2 * PAGE, dtype=dtype)
    clear_(values.t()[::2])
    assert values[:, 1::2].all() and not values[:, ::2].any()
    clear_(values)
    assert not values.any()


def test_memory_of_several_processes_is_written() -> None:
    values = torch.ones(8 * PAGE).share_memory_()
    clear_(values)
    assert not values.any()


@pytest.mark.parametrize("implementation", ["compiled", "reference"])
def test_scaling_is_a_product(implementation) -> None:
    values = torch.randn(5 * PAGE + 3)
    values[PAGE : 3 * PAGE] = 0
    values[2 * PAGE], values[2 * PAGE + 1], values[4 * PAGE] = -0.0, 1e-45, float("nan")
    expected = values * 0.37
    with override("adamw", implementation):
        scale_written_(values, torch.tensor(0.37))
    assert torch.equal(values.isnan(), expected.isnan())
    torch.testing.assert_close(values, expected, rtol=0, atol=0, equal_nan=True)
    half = torch.ones(7, dtype=torch.bfloat16)
    scale_written_(half, 0.5)
    assert half.tolist() == [0.5] * 7


@needs_kernels
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_what_stays_zero_takes_no_memory() -> None:
    values = torch.ones(64 * MIB // 4)
    full = resident_bytes()
    clear_(values)
    assert full - resident_bytes() > 48 * MIB, "the pages were written instead of given back"
    values[:PAGE] = 2.0
    scale_written_(values, 0.5)
    # Asked before the contents, whose comparison takes memory of its own.
    assert full - resident_bytes() > 48 * MIB, "scaling wrote zeros, or reading took pages"
    assert values[:PAGE].eq(1).all() and not values[PAGE:].any()
