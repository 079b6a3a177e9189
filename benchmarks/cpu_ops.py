"""Each op alone, forward and backward: ours against torch eager and torch.compile on the CPU.

    python benchmarks/cpu_ops.py [--threads 2]

Best of several runs at the shape of `cpu_step.py`; also called by it.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F

from megatron_synE import kernels

TOKENS, HIDDEN, FFN, VOCAB = 2048, 512, 1536, 32000
SEQ_LENGTH, GROUPS, REPEATS, HEAD_DIM = 512, 4, 2, 64
OPTIMIZER_PARAMETERS = 4 * 2**20
RUNS = 7

Op = Callable[..., Any]


def eager_add_norm(x: torch.Tensor, residual: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    summed = (x + residual).float()
    return (summed * torch.rsqrt(summed.square().mean(-1, keepdim=True) + 1e-5)).to(x.dtype) * weight


def eager_rope(packed: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    heads, value = packed[:, :, :-1], packed[:, :, -1:]
    first, second = heads.chunk(2, dim=-1)
    turned = heads * cos + torch.cat((-second, first), dim=-1) * sin
    return torch.cat((turned, value), dim=2)


def eager_swiglu(x: torch.Tensor) -> torch.Tensor:
    gate, up = x.chunk(2, dim=-1)
    return F.silu(gate) * up


def eager_loss(hidden: torch.Tensor, weight: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    return F.cross_entropy((hidden @ weight.t()).float(), labels, reduction="sum")


def eager_attention(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
    heads = query.flatten(2, 3).permute(1, 2, 0, 3)
    keys, values = key.permute(1, 2, 0, 3), value.permute(1, 2, 0, 3)
    return F.scaled_dot_product_attention(heads, keys, values, is_causal=True, enable_gqa=True).permute(2, 0, 1, 3)


def ops(dtype: torch.dtype) -> dict[str, tuple[Op, Op, list[torch.Tensor]]]:
    """Name → ours, eager, differentiable inputs."""

    def randn(*shape: int) -> torch.Tensor:
        return torch.randn(*shape).to(dtype).requires_grad_()

    angles = torch.outer(torch.arange(SEQ_LENGTH).float(), 500000.0 ** (-torch.arange(0, HEAD_DIM, 2) / HEAD_DIM))
    positions = torch.arange(TOKENS) % SEQ_LENGTH
    cos, sin = angles.cos(), angles.sin()
    wide_cos, wide_sin = (torch.cat((t, t), -1)[positions][:, None, None].to(dtype) for t in (cos, sin))
    labels = torch.randint(0, VOCAB, (TOKENS,))
    mask = torch.ones(TOKENS)
    batch = TOKENS // SEQ_LENGTH
    kv_shape = (SEQ_LENGTH, batch, GROUPS, HEAD_DIM)
    return {
        "add + RMSNorm": (
            lambda x, r, w: kernels.add_rms_norm(x, r, w, 1e-5)[0],
            eager_add_norm,
            [randn(TOKENS, HIDDEN), randn(TOKENS, HIDDEN), randn(HIDDEN)],
        ),
        "RoPE on packed QK": (
            lambda p: kernels.rope_(p.clone(), cos, sin, positions, REPEATS + 1),
            lambda p: eager_rope(p, wide_cos, wide_sin),
            [randn(TOKENS, GROUPS, REPEATS + 2, HEAD_DIM)],
        ),
        "SwiGLU": (kernels.swiglu, eager_swiglu, [randn(TOKENS, 2 * FFN)]),
        "causal attention": (
            lambda q, k, v: kernels.causal_attention(q, k, v, HEAD_DIM**-0.5),
            eager_attention,
            [randn(SEQ_LENGTH, batch, GROUPS, REPEATS, HEAD_DIM), randn(*kv_shape), randn(*kv_shape)],
        ),
        "linear + cross entropy": (
            lambda h, w: kernels.linear_cross_entropy(h, w, labels, mask, VOCAB)[0],
            lambda h, w: eager_loss(h, w, labels),
            [randn(TOKENS, HIDDEN), randn(VOCAB, HIDDEN)],
        ),
    }


def best_ms(op: Op, inputs: list[torch.Tensor]) -> float:
    """Best time of a forward and a backward pass."""
    gradient = torch.ones_like(op(*inputs))
    times = []
    for _ in range(RUNS + 2):
        start = time.perf_counter()
        torch.autograd.grad(op(*inputs), inputs, gradient)
        times.append(time.perf_counter() - start)
    return 1e3 * min(times[2:])


def optimizer_ms() -> dict[str, float]:
    """AdamW on fp32 parameters: torch's fused, compiled, and ours."""
    times = {}
    for name in ("ours", "eager", "compile"):
        param = torch.zeros(OPTIMIZER_PARAMETERS, requires_grad=True)
        param.grad = torch.randn(OPTIMIZER_PARAMETERS)
        optimizer = torch.optim.AdamW([param], lr=1e-3, fused=name != "compile", foreach=None)
        if name == "ours":
            kernels.FusedAdamW.adopt(optimizer)
        step = torch.compile(optimizer.step) if name == "compile" else optimizer.step
        measured = []
        for _ in range(RUNS + 2):
            start = time.perf_counter()
            step()
            measured.append(time.perf_counter() - start)
        times[name] = 1e3 * min(measured[2:])
    return times


def print_table(threads: int) -> dict[str, dict[str, float]]:
    """Print milliseconds of each op, forward and backward, and return them."""
    torch.set_num_threads(threads)
    print(f"\n{'forward + backward, ms':32s} {'ours':>8s} {'eager':>8s} {'compile':>8s}")
    rows = {}
    for dtype in (torch.bfloat16, torch.float32):
        short = "bf16" if dtype == torch.bfloat16 else "fp32"
        for name, (ours, eager, inputs) in ops(dtype).items():
            times = {"ours": best_ms(ours, inputs), "eager": best_ms(eager, inputs)}
            times["compile"] = best_ms(torch.compile(eager), inputs)
            rows[f"{name} {short}"] = times
    rows["AdamW, 4 Mi parameters"] = optimizer_ms()
    for name, times in rows.items():
        print(f"{name:32s} {times['ours']:8.2f} {times['eager']:8.2f} {times['compile']:8.2f}")
    return rows


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=2)
    figures = print_table(parser.parse_args().threads)
    print(json.dumps({op: {name: round(ms, 3) for name, ms in times.items()} for op, times in figures.items()}))
