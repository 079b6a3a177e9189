"""What a call of our ops costs the host beside the kernel, by torch's custom ops and by `kernels/op.py`, side by side.

    python benchmarks/op_overhead.py [--rounds 60]

Tensors are so small that the kernels take no time; the two ways take turns, and the figures are medians over rounds, in
microseconds. "plain torch" is a multiplication of the same tensors: what autograd alone costs. The last line is one
JSON object.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from contextlib import ExitStack
from importlib import import_module
from unittest.mock import patch

import torch

from megatron_synE.kernels.op import KernelOp

CALLS = 100
WIDTH = 64
Pass = Callable[[], object]


def passes(op: Callable[..., torch.Tensor], *inputs: torch.Tensor) -> dict[str, Pass]:
    """Inference, forward, and forward with backward of an op with one result."""
    for value in inputs:
        value.requires_grad_()
    gradient = torch.ones_like(op(*inputs))

    def without_gradient() -> None:
        with torch.no_grad():
            op(*inputs)

    return {
        "no_grad": without_gradient,
        "forward": lambda: op(*inputs),
        "forward_backward": lambda: op(*inputs).backward(gradient),
    }


def by_torch() -> ExitStack:
    """Inside, every op goes the way of torch's custom ops."""
    stack = ExitStack()
    stack.enter_context(patch.object(KernelOp, "__call__", lambda self, *inputs: self._op(*inputs)))
    return stack


def microseconds(run: Pass) -> float:
    """Of one call, over some."""
    start = time.perf_counter()
    for _ in range(CALLS):
        run()
    return (time.perf_counter() - start) / CALLS * 1e6


def measure(run: Pass, rounds: int) -> tuple[float, float]:
    """(by torch, ours): medians of rounds in turn."""
    before, after = [], []
    for _ in range(rounds):
        with by_torch():
            before.append(microseconds(run))
        after.append(microseconds(run))
    return statistics.median(before), statistics.median(after)


def main() -> None:
    """Print a line for each op and pass, and all of them as JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=60, help="rounds of 100 calls for each figure")
    rounds = parser.parse_args().rounds
    torch.set_num_threads(1)
    rms_norm = import_module("megatron_synE.kernels.rms_norm").rms_norm
    swiglu = import_module("megatron_synE.kernels.swiglu").swiglu
    ops: dict[str, dict[str, Pass]] = {
        "rms_norm": passes(lambda x, w: rms_norm(x, w, 1e-5), torch.randn(4, WIDTH), torch.ones(WIDTH)),
        "swiglu": passes(swiglu, torch.randn(4, 2 * WIDTH)),
    }
    figures: dict[str, float] = {}
    for name, runs in ops.items():
        for what, run in runs.items():
            before, after = measure(run, rounds)
            figures[f"{name}_{what}_custom_op_us"], figures[f"{name}_{what}_us"] = before, after
            print(f"{name:9} {what:17} custom op {before:6.1f} µs   ours {after:6.1f} µs")
    for what, run in passes(torch.mul, torch.randn(4, WIDTH), torch.ones(WIDTH)).items():
        figures[f"plain_torch_{what}_us"] = statistics.median(microseconds(run) for _ in range(rounds))
        print(f"plain torch {what:15} {figures[f'plain_torch_{what}_us']:16.1f} µs")
    print(json.dumps({name: round(value, 2) for name, value in figures.items()}))


if __name__ == "__main__":
    main()
