"""Times and rates on a GPU; the CPU, for rehearsals, is measured by the same calls."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

import torch

FLUSH_BYTES = 256 * 2**20
"""Several times the largest second-level cache."""
HEAD_START_CYCLES = 1_000_000
"""The device waits half a millisecond before each measured op, so that the host has issued it by then."""


def synchronize(device: torch.device) -> None:
    """Wait until the device has done all it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def median_seconds(call: Callable[[], object], device: torch.device, runs: int, warmup: int = 2) -> float:
    """Median wall-clock time of a call to its end on the device."""
    times = []
    for _ in range(warmup + runs):
        synchronize(device)
        start = time.perf_counter()
        call()
        synchronize(device)
        times.append(time.perf_counter() - start)
    return statistics.median(times[warmup:])


def median_kernel_seconds(op: Callable[[], object], device: torch.device, runs: int, warmup: int = 5) -> float:
    """Median device time of an op whose data is in memory and in no cache.

    The caches are emptied by reading: what an op before has written is written back then, and not while this one runs.
    """
    if device.type != "cuda":
        return median_seconds(op, device, runs, warmup)
    flush = torch.zeros(FLUSH_BYTES // 4, device=device)
    times = []
    for _ in range(warmup + runs):
        flush.sum()
        torch.cuda._sleep(HEAD_START_CYCLES)
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        start.record()
        op()
        end.record()
        torch.cuda.synchronize(device)
        times.append(start.elapsed_time(end) / 1e3)
    return statistics.median(times[warmup:])


def copy_rate(device: torch.device, num_bytes: int, runs: int) -> float:
    """Bytes read and written in a second by a copy inside the device's memory."""
    source = torch.zeros(num_bytes, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    return 2 * num_bytes / median_kernel_seconds(lambda: target.copy_(source), device, runs)


def product_rate(device: torch.device, dtype: torch.dtype, size: int, runs: int) -> float:
    """FLOP/s of a square product on random data; float8_e4m3fn with one scale a tensor and a bf16 result."""
    a, b = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
    if dtype == torch.float8_e4m3fn:
        one = torch.ones((), device=device)
        seconds = median_seconds(
            lambda: torch._scaled_mm(a, b.t(), scale_a=one, scale_b=one, out_dtype=torch.bfloat16), device, runs
        )
    else:
        seconds = median_seconds(lambda: torch.mm(a, b), device, runs)
    return 2 * size**3 / seconds
