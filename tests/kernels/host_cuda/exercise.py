"""Every CUDA kernel on small odd sizes, against float64 and in several thread orders; also under the sanitizers.

    python -m tests.kernels.host_cuda.exercise EXTENSION [--order forward|reverse|random] [--only WORD]

All kernels are called through the package's Python on the emulated GPU, and each case once more in float64, where the
package takes its reference. The status is 1 where a result is wrong, an order changes one, or an exported function was
not called: a new function needs a case here.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import get_args

import torch

from megatron_synE.kernels import (
    adamw_,
    add_rms_norm,
    add_to_main_grad,
    linear_cross_entropy,
    override,
    reference,
    rms_norm,
    rope_,
    rope_unpack,
    scale_,
    sum_of_squares,
    swiglu,
)
from megatron_synE.kernels.fp8 import (
    E4M3,
    E5M2,
    largest_magnitude,
    quantize,
    quantize_both_ways,
    quantize_transposed,
)
from megatron_synE.kernels.linear_cross_entropy import _softmax
from tests.kernels.host_cuda.build import Order, configure, load
from tests.kernels.host_cuda.gpu import emulated_gpu
from tests.kernels.oracle import BF16_FACTOR, relative_error

# RoPE's fp32 angles are products of two roundings.
FP32_TOLERANCE = 2e-5
FP32, BF16 = torch.float32, torch.bfloat16


@dataclass(frozen=True)
class Placement:
    """Where the operands of a case are, and in which type: on the GPU, or rounded and then exact."""

    dtype: torch.dtype
    device: str = "cuda"
    wide: bool = False
    offset: int = 0
    """Elements by which operands miss a 16-byte boundary."""

    def __call__(self, *shape: int, seed: int = 0, dtype: torch.dtype | None = None) -> torch.Tensor:
        """Normal values, the same for every placement that rounds to the same type."""
        values = torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(dtype or self.dtype)
        return self.put(values.double() if self.wide else values)

    def put(self, values: torch.Tensor) -> torch.Tensor:
        room = torch.empty(values.numel() + self.offset, dtype=values.dtype, device=self.device)
        return room[self.offset :].view(values.shape).copy_(values.to(self.device))


def gradients(outputs: tuple[torch.Tensor, ...], *leaves: torch.Tensor) -> list[torch.Tensor]:
    grads = [output.detach().flip(-1) * 0.5 for output in outputs]
    return [*outputs, *torch.autograd.grad(outputs, leaves, grads)]


def norm(width: int) -> Callable[[Placement], list[torch.Tensor]]:
    def run(new: Placement) -> list[torch.Tensor]:
        x, weight = new(5, width).requires_grad_(), new(width, seed=1).requires_grad_()
        return gradients((rms_norm(x, weight, 1e-5),), x, weight)

    return run


def norm_of_sum(width: int) -> Callable[[Placement], list[torch.Tensor]]:
    def run(new: Placement) -> list[torch.Tensor]:
        # In bf16 the sum is rounded, by the reference too: halves leave nothing to round.
        x, residual = ((new(5, width, seed=s) * 2).round().requires_grad_() for s in (0, 1))
        weight = new(width, seed=2).requires_grad_()
        return gradients(add_rms_norm(x, residual, weight, 1e-5), x, residual, weight)

    return run


def gate(width: int) -> Callable[[Placement], list[torch.Tensor]]:
    def run(new: Placement) -> list[torch.Tensor]:
        x = new(5, 2 * width).requires_grad_()
        return gradients((swiglu(x),), x)

    return run


def rotation(head_dim: int) -> Callable[[Placement], list[torch.Tensor]]:
    def run(new: Placement) -> list[torch.Tensor]:
        angles = torch.outer(torch.arange(9.0), 500.0 ** (-torch.arange(0, head_dim, 2) / head_dim))
        cos, sin = new.put(angles.cos()), new.put(angles.sin())
        packed = new(7, 2, 4, head_dim).requires_grad_()
        positions = torch.tensor([0, 1, 2, 8, 0, 1, 2]).to(new.device)
        return gradients((rope_(packed.clone(), cos, sin, positions, 3),), packed)

    return run


def unpacking(head_dim: int) -> Callable[[Placement], list[torch.Tensor]]:
    def run(new: Placement) -> list[torch.Tensor]:
        angles = torch.outer(torch.arange(9.0), 500.0 ** (-torch.arange(0, head_dim, 2) / head_dim))
        cos, sin = new.put(angles.cos()), new.put(angles.sin())
        packed = new(7, 2, 4, head_dim).requires_grad_()
        positions = torch.tensor([0, 1, 2, 8, 0, 1, 2]).to(new.device)
        return gradients(rope_unpack(packed.clone(), cos, sin, positions), packed)

    return run


def head(rows: int, vocabulary: int) -> Callable[[Placement], list[torch.Tensor]]:
    def run(new: Placement) -> list[torch.Tensor]:
        hidden, weight = new(3, 8).requires_grad_(), new(rows, 8, seed=1).requires_grad_()
        labels = torch.tensor([0, vocabulary - 1, vocabulary // 2]).to(new.device)
        mask = torch.tensor([1.0, 0.0, 0.5]).to(new.device, torch.float64 if new.wide else torch.float32)
        loss, token_loss = linear_cross_entropy(hidden, weight, labels, mask, vocabulary)
        return [loss, token_loss, *torch.autograd.grad(loss, (hidden, weight))]

    return run


def shard(columns: int) -> Callable[[Placement], list[torch.Tensor]]:
    """Statistics and gradient apart, as tensor-parallel ranks ask for them; no target is in the shard."""

    def run(new: Placement) -> list[torch.Tensor]:
        logits, valid = new(3, columns), columns - 1
        if new.wide:
            probabilities = logits[:, :valid].softmax(-1)
            gradient = torch.cat((probabilities, torch.zeros(3, 1)), -1) * torch.tensor([[1.0], [0.0], [0.5]])
            return [logits[:, :valid].logsumexp(-1), gradient]
        scale, targets = torch.tensor([1.0, 0.0, 0.5]).to(new.device), torch.tensor([-1, columns, columns + 7])
        arguments = (targets.to(new.device), scale, valid, None)
        maximum, total, target = _softmax(logits.clone(), *arguments, False)
        assert torch.equal(target.cpu(), torch.zeros(3))
        _softmax(logits, *arguments, True)
        return [total.log() + maximum, logits]

    return run


def optimizer(state: torch.dtype, remainders: bool) -> Callable[[Placement], list[torch.Tensor]]:
    def run(new: Placement) -> list[torch.Tensor]:
        grad = new(1003)
        param, first = new(1003, seed=1, dtype=torch.float32), new(1003, seed=2, dtype=state)
        second = new.put(first.cpu().square())
        model_param = remainder = None
        if not new.wide:
            first, second = first.to(state), second.to(state)
            if remainders:
                param, remainder = (new.put(half) for half in reference.split_fp32(param.cpu()))
            else:
                model_param = new(1003, dtype=torch.bfloat16)
        options = {"lr": 3e-3, "betas": (0.9, 0.95), "eps": 1e-8, "weight_decay": 0.1, "step": 3, "grad_scale": 0.3}
        adamw_(param, grad, first, second, model_param=model_param, remainder=remainder, **options)
        main = param if remainder is None else reference.join_fp32(param.cpu(), remainder.cpu())
        if model_param is not None:
            assert torch.equal(model_param.cpu(), param.cpu().bfloat16())
        return [main, first, second]

    return run


def buffers(new: Placement) -> list[torch.Tensor]:
    weight = torch.nn.Parameter(new(41, 31))
    weight.main_grad = new(41, 31, seed=1, dtype=torch.float32)  # type: ignore[attr-defined]
    scale = torch.tensor(0.25, dtype=weight.main_grad.dtype, device=new.device)
    add_to_main_grad(weight, new(41, 31, seed=2), scale)
    # The blocks of a launch work on chunks of 16,384 elements.
    scaled = [new(count, dtype=torch.float32) for count in (1003, 16_389)]
    scale_(scaled, 0.3)
    return [weight.main_grad, *scaled, sum_of_squares([new(1003), new(16_389, seed=1)])]


def eight_bit(rows: int, columns: int) -> Callable[[Placement], list[torch.Tensor]]:
    def run(new: Placement) -> list[torch.Tensor]:
        matrix, results = new(rows, columns), []
        matrix[rows // 2, columns // 3] *= 1000
        for dtype in (E4M3, E5M2):
            both = quantize_both_ways(matrix, dtype)
            alone = (quantize(matrix, dtype), quantize_transposed(matrix, dtype))
            for one, other in zip(both, alone, strict=True):
                assert torch.equal(one.values.cpu().view(torch.uint8), other.values.cpu().view(torch.uint8))
            results += [largest_magnitude(matrix), *(part for q in both for part in (q.values.float(), q.unit))]
        return results

    return run


# Widths: whole packs in one and in two a thread, then single elements.
CASES: dict[str, Callable[[Placement], list[torch.Tensor]]] = {
    **{f"norm {width}": norm(width) for width in (64, 129)},
    **{f"norm of a sum {width}": norm_of_sum(width) for width in (4224, 33)},
    **{f"gate {width}": gate(width) for width in (64, 129)},
    **{f"rotation {head_dim}": rotation(head_dim) for head_dim in (32, 6)},
    **{f"unpacking {head_dim}": unpacking(head_dim) for head_dim in (32, 6)},
    **{f"head {rows}": head(rows, vocabulary) for rows, vocabulary in ((64, 61), (131, 131))},
    **{f"shard {columns}": shard(columns) for columns in (72, 45)},
    **{f"optimizer {state} {r}": optimizer(state, r) for state in (FP32, BF16) for r in (True, False)},
    "buffers": buffers,
    # More than one tile of 128 each way, of whole packs, then of single elements.
    **{f"eight bit {rows} {columns}": eight_bit(rows, columns) for rows, columns in ((132, 136), (131, 133), (5, 3))},
}


def bits(results: list[torch.Tensor]) -> list[torch.Tensor]:
    return [result.detach().cpu().reshape(-1).view(torch.uint8) for result in results]


def check_cases(module: ModuleType, only: str = "", orders: Sequence[Order] = get_args(Order)) -> list[str]:
    """What is wrong with the kernels of `module`, in words; `only` is a word of the cases to run."""
    recorder, found = Recorder(module), list[str]()
    with emulated_gpu(recorder):
        for case in CASES:
            for dtype in (torch.float32, torch.bfloat16):
                for offset in (0, 1):
                    if only in case:
                        found += check(case, dtype, offset, orders, module)
    if not only:
        found += [f"{name} was not called: exercise.py needs a case" for name in sorted(recorder.uncalled())]
    return found


def check(case: str, dtype: torch.dtype, offset: int, orders: Sequence[Order], module: ModuleType) -> list[str]:
    run, found = CASES[case], []
    expected = run(Placement(dtype, "cpu", wide=True))
    with override("all", "reference"):
        usual = run(Placement(dtype, "cpu"))
    first: list[torch.Tensor] = []
    for order in orders:
        configure(module, order, seed=1)
        results = run(Placement(dtype, offset=offset))
        first = first or bits(results)
        if not all(map(torch.equal, bits(results), first)):
            found.append(f"{order} order gives another result")
        for number, (result, exact, plain) in enumerate(zip(results, expected, usual, strict=True)):
            allowed = max(FP32_TOLERANCE, BF16_FACTOR * relative_error(plain, exact) if result.dtype != torch.float32 or
                          dtype == torch.bfloat16 else 0.0)  # fmt: skip
            error = relative_error(result, exact)
            if not error <= allowed:
                found.append(f"result {number} in {order} order is off by {error:.1e}, allowed {allowed:.1e}")
    return [f"{case}, {dtype}, offset {offset}: {text}" for text in found]


class Recorder(ModuleType):
    """The extension, and the names of the functions that were taken from it."""

    def __init__(self, module: ModuleType) -> None:
        super().__init__(module.__name__)
        self._module, self._called = module, set[str]()

    def __getattr__(self, name: str):
        self._called.add(name)
        return getattr(self._module, name)

    def uncalled(self) -> set[str]:
        exported = {name for name in dir(self._module) if callable(getattr(self._module, name))}
        return {name for name in exported if not name.startswith("_")} - self._called


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("extension", type=Path)
    parser.add_argument("--order", action="append", choices=get_args(Order))
    parser.add_argument("--only", default="", help="a word of the cases to run")
    args = parser.parse_args()
    found = check_cases(load(args.extension), args.only, args.order or get_args(Order))
    print("\n".join(found) or "all results are right")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
