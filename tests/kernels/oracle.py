"""How kernels are compared: with the reference evaluated in float64, and in bf16 with plain torch's own error."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

from megatron_synE.kernels import _native

Op = Callable[..., torch.Tensor | tuple[torch.Tensor, ...]]

FP32_TOLERANCE = 1e-5
BF16_FACTOR = 2.0


def devices() -> list[str]:
    found = ["cpu"] if _native.extension("cpu") is not None else []
    return found + (["cuda"] if torch.cuda.is_available() and _native.extension("cuda") is not None else [])


def relative_error(actual: torch.Tensor, expected: torch.Tensor) -> float:
    actual, expected = actual.detach().cpu().double(), expected.detach().cpu().double()
    assert actual.shape == expected.shape
    scale = expected.norm().item()
    return (actual - expected).norm().item() / scale if scale else (actual - expected).abs().sum().item()


def run(op: Op, inputs: Sequence[torch.Tensor], grads: Sequence[torch.Tensor], dtype: torch.dtype, device: str):
    """Outputs and input gradients of `op` with `inputs` in `dtype`, given the outputs' gradients."""
    leaves = [t.to(device, dtype).requires_grad_() for t in inputs]
    outputs = op(*leaves)
    outputs = outputs if isinstance(outputs, tuple) else (outputs,)
    used = [(o, g.to(device, o.dtype)) for o, g in zip(outputs, grads, strict=True)]
    gradients = torch.autograd.grad([o for o, _ in used], leaves, [g for _, g in used])
    return [*outputs, *gradients]


def check(
    op: Op, reference: Op, inputs: Sequence[torch.Tensor], dtype: torch.dtype, device: str, plain: Op | None = None
) -> None:
    """`op` in `dtype` against `reference` in float64, outputs and gradients; `plain` is torch's way to write it."""
    # The oracle sees the inputs as rounded to `dtype`, so that only the arithmetic is compared.
    rounded = [t.to(dtype).double() for t in inputs]
    probe = reference(*rounded)
    probe = probe if isinstance(probe, tuple) else (probe,)
    generator = torch.Generator().manual_seed(7)
    grads = [torch.randn(o.shape, generator=generator).to(dtype).double() for o in probe]
    expected = run(reference, rounded, grads, torch.float64, "cpu")
    actual = run(op, rounded, grads, dtype, device)
    usual = run(plain or reference, rounded, grads, dtype, "cpu") if dtype == torch.bfloat16 else expected
    for number, (a, e, p) in enumerate(zip(actual, expected, usual, strict=True)):
        allowed = FP32_TOLERANCE if dtype == torch.float32 else BF16_FACTOR * relative_error(p, e) + 1e-6
        assert relative_error(a, e) <= allowed, f"result {number}: {relative_error(a, e):.2e} > {allowed:.2e}"
