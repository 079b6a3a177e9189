"""Memory-bound ops on a GPU against the measured device-to-device copy rate, at hidden 4096 and 8192 tokens.

    python benchmarks/gpu_kernels.py [--tokens 8192] [--hidden 4096]

Rates count the bytes that an op must read and write once. The last line is one JSON object: share of the copy rate per
op, and milliseconds. Without a GPU it says so and exits with status 0 and an empty object.
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Callable

import torch

from megatron_synE import kernels
from megatron_synE.kernels import weight_gradient

RUNS = 30


def median_ms(op: Callable[[], object]) -> float:
    """Median device time of a call, caches flushed by a copy larger than them in between."""
    flush = torch.empty(256 * 2**20, dtype=torch.uint8, device="cuda")
    times = []
    for _ in range(RUNS + 5):
        flush.zero_()
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        start.record()
        op()
        end.record()
        torch.cuda.synchronize()
        times.append(start.elapsed_time(end))
    return statistics.median(times[5:])


def measure(tokens: int, hidden: int) -> dict[str, tuple[float, float]]:
    """Name → (milliseconds, bytes that have to move)."""

    def randn(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, device="cuda", dtype=torch.bfloat16)

    x, residual, dy, weight = randn(tokens, hidden), randn(tokens, hidden), randn(tokens, hidden), randn(hidden)
    row_bytes = x.numel() * x.element_size()
    ffn = hidden * 7 // 2
    gates, dgates = randn(tokens, 2 * ffn), randn(tokens, ffn)
    groups, repeats, dim = hidden // 512, 4, 128
    packed = randn(tokens, groups, repeats + 2, dim)
    angles = torch.rand(tokens, dim // 2, device="cuda")
    positions = torch.arange(tokens, device="cuda")
    flat = torch.zeros(4, 64 * 2**20, device="cuda").unbind(0)
    product = torch.zeros(64 * 2**20, device="cuda", dtype=torch.bfloat16)
    op = torch.ops.syne
    rstd = op.rms_norm(x, weight, 1e-5)[1]

    def adamw() -> None:
        kernels.adamw_(*flat, lr=1e-5, betas=(0.9, 0.95), eps=1e-8, weight_decay=0.1, step=1)

    rotated = packed.numel() * 2 * (repeats + 1) / (repeats + 2)
    cases: dict[str, tuple[Callable[[], object], float]] = {
        "rms_norm": (lambda: op.rms_norm(x, weight, 1e-5), 2 * row_bytes),
        "add_rms_norm": (lambda: op.add_rms_norm(x, residual, weight, 1e-5), 4 * row_bytes),
        "rms_norm_backward": (lambda: op.rms_norm_backward(dy, None, x, weight, rstd), 3 * row_bytes),
        "swiglu": (lambda: op.swiglu(gates), 3 * dgates.numel() * 2),
        "swiglu_backward": (lambda: op.swiglu_backward(dgates, gates), 5 * dgates.numel() * 2),
        "rope": (lambda: kernels.rope_(packed, angles, angles, positions, repeats + 1), 2 * rotated),
        "accumulate": (lambda: weight_gradient._accumulate(flat[0], product, None), product.numel() * 10.0),
        "adamw": (adamw, flat[0].numel() * 28.0),
    }
    return {name: (median_ms(case), size) for name, (case, size) in cases.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, default=8192)
    parser.add_argument("--hidden", type=int, default=4096)
    args = parser.parse_args()
    if not torch.cuda.is_available():
        print("no GPU on this machine: nothing measured")
        print(json.dumps({}))
        return
    source = torch.empty(2**30, dtype=torch.uint8, device="cuda")
    target = torch.empty_like(source)
    copy_rate = 2 * source.numel() / median_ms(lambda: target.copy_(source)) * 1e3
    print(f"{torch.cuda.get_device_name()}: device-to-device copy {copy_rate / 1e9:.0f} GB/s")
    figures: dict[str, object] = {"machine": torch.cuda.get_device_name(), "copy_gb_per_s": round(copy_rate / 1e9)}
    for name, (ms, size) in measure(args.tokens, args.hidden).items():
        share = size / ms * 1e3 / copy_rate
        print(f"  {name:18s} {ms:7.3f} ms  {size / ms / 1e6:6.0f} GB/s  {share:6.1%} of the copy rate")
        figures[name] = {"ms": round(ms, 4), "share_of_copy_rate": round(share, 3)}
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
