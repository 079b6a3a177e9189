"""Memory-bound ops on a GPU against the measured device-to-device copy rate.

    python benchmarks/gpu_kernels.py [--tokens 8192] [--hidden 4096 8192] [--device cuda] [--tiny]

Rates count the bytes that an op must read and write once; caches are empty before each call, and hold nothing that is
still to be written. One JSON object an op, as it is found: milliseconds and share of the copy rate; the last line is
one JSON object with all. `--tiny --device cpu` rehearses it. Exit status 77 without a GPU.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable

import torch
from gpu.runner import SKIPPED
from gpu.timing import copy_rate, median_kernel_seconds

from megatron_synE import kernels
from megatron_synE.kernels import selection, weight_gradient
from megatron_synE.kernels.linear_cross_entropy import _softmax

RUNS = 30
VOCAB = 128256
HEAD_DIM, REPEATS = 128, 4

Ops = dict[str, tuple[Callable[[], object], float]]
"""Name → the op and the bytes that have to move."""


def layer_ops(tokens: int, hidden: int, device: torch.device) -> Ops:
    """What a layer of this width does between its products, in bf16."""

    def randn(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, device=device, dtype=torch.bfloat16)

    x, residual, dy, weight = randn(tokens, hidden), randn(tokens, hidden), randn(tokens, hidden), randn(hidden)
    row_bytes = x.numel() * x.element_size()
    ffn = hidden * 7 // 2
    gates, dgates = randn(tokens, 2 * ffn), randn(tokens, ffn)
    packed = randn(tokens, max(1, hidden // (HEAD_DIM * REPEATS)), REPEATS + 2, HEAD_DIM)
    angles = torch.rand(tokens, HEAD_DIM // 2, device=device)
    positions = torch.arange(tokens, device=device)
    op = torch.ops.syne
    rstd = op.rms_norm(x, weight, 1e-5)[1]
    parts = [part.contiguous() for part in (packed[:, :, :-2], packed[:, :, -2], packed[:, :, -1])]
    packed_bytes = packed.numel() * packed.element_size()
    ops: Ops = {
        "rms_norm": (lambda: op.rms_norm(x, weight, 1e-5), 2 * row_bytes),
        "add_rms_norm": (lambda: op.add_rms_norm(x, residual, weight, 1e-5), 4 * row_bytes),
        "rms_norm_backward": (lambda: op.rms_norm_backward(dy, None, x, weight, rstd), 3 * row_bytes),
        "add_rms_norm_backward": (lambda: op.rms_norm_backward(dy, residual, x, weight, rstd), 4 * row_bytes),
        "swiglu": (lambda: op.swiglu(gates), 3 * dgates.numel() * 2),
        "swiglu_backward": (lambda: op.swiglu_backward(dgates, gates), 5 * dgates.numel() * 2),
        "rope_unpack": (lambda: kernels.rope_unpack(packed, angles, angles, positions), 2 * packed_bytes),
    }
    if packed.is_cuda:  # on the host the heads stay packed
        backward = op.rope_unpack_backward
        ops["rope_unpack_backward"] = (lambda: backward(*parts, angles, angles, positions), 2 * packed_bytes)
    return ops


def head_ops(rows: int, vocab: int, device: torch.device) -> Ops:
    """Cross entropy of a chunk of logits."""
    logits = torch.randn(rows, vocab, device=device, dtype=torch.bfloat16)
    targets = torch.randint(0, vocab, (rows,), device=device)
    scale = torch.ones(rows, device=device)
    size = logits.numel() * logits.element_size()
    return {
        "cross_entropy": (lambda: _softmax(logits, targets, scale, vocab, None, False), size),
        "cross_entropy_with_gradient": (lambda: _softmax(logits, targets, scale, vocab, None, True), 2 * size),
    }


def optimizer_ops(count: int, device: torch.device) -> Ops:
    """Weight gradients and updates of `count` weights."""
    flat = torch.zeros(4, count, device=device).unbind(0)
    bf16 = [torch.zeros(count, device=device, dtype=torch.bfloat16) for _ in range(3)]
    remainder = torch.zeros(count, device=device, dtype=torch.int16)
    rule = {"lr": 1e-5, "betas": (0.9, 0.95), "eps": 1e-8, "weight_decay": 0.1, "step": 1}
    return {
        "accumulate": (lambda: weight_gradient._accumulate(flat[0], bf16[0], None), count * 10.0),
        "adamw": (lambda: kernels.adamw_(*flat, **rule), count * 28.0),
        "adamw_bf16_moments": (
            lambda: kernels.adamw_(bf16[0], flat[1], bf16[1], bf16[2], remainder=remainder, **rule), count * 20.0,
        ),
        "sum_of_squares": (lambda: kernels.sum_of_squares([flat[0]]), count * 4.0),
    }  # fmt: skip


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, default=8192)
    parser.add_argument("--hidden", type=int, nargs="+", default=[4096, 8192])
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--tiny", action="store_true", help="sizes of no meaning, to rehearse on a CPU")
    args = parser.parse_args()
    if args.device == "cuda" and not torch.cuda.is_available():
        print("no GPU on this machine")
        return SKIPPED
    device, runs = torch.device(args.device), 2 if args.tiny else RUNS
    chosen = selection.choice("rms_norm", device.type)
    if chosen.implementation != "compiled":
        print(f"no compiled kernels: {chosen.reason}")
        return 1
    shrink = 2**10 if args.tiny else 1
    rate = copy_rate(device, 2**30 // shrink, runs)
    machine = torch.cuda.get_device_name() if device.type == "cuda" else "cpu"
    figures: dict[str, object] = {"machine": machine, "copy_gb_per_s": round(rate / 1e9)}
    print(json.dumps(figures), flush=True)

    def measure(ops: Ops, hidden: int) -> None:
        for name, (op, size) in ops.items():
            seconds = median_kernel_seconds(op, device, runs)
            share = size / seconds / rate
            found = {"hidden": hidden, "ms": round(seconds * 1e3, 4), "share_of_copy_rate": round(share, 3)}
            figures[f"{name} {hidden}"] = found
            print(json.dumps({f"{name} {hidden}": found}), flush=True)

    for hidden in args.hidden:
        measure(layer_ops(args.tokens // shrink, hidden, device), hidden)
    measure(head_ops(2048 // shrink, VOCAB, device), args.hidden[0])
    measure(optimizer_ops(64 * 2**20 // shrink, device), args.hidden[0])
    print(json.dumps(figures))
    return 0


if __name__ == "__main__":
    sys.exit(main())
