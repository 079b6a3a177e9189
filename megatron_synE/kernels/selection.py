"""Which implementation each op runs: picked once per op and device, with the reason on record.

    compiled   the C++ or CUDA kernel of csrc
    reference  plain torch, `kernels/reference.py`; also for dtypes that the compiled kernels do not take
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from typing import Literal

import torch

from megatron_synE.kernels import _native, onednn, variable_length_attention

Implementation = Literal["compiled", "reference"]

OPS = (
    "rms_norm",
    "rope",
    "swiglu",
    "linear_cross_entropy",
    "weight_gradient",
    "adamw",
    "causal_attention",
    "fp8",
    "product",
)


@dataclass(frozen=True)
class Choice:
    """What an op runs on a device, and why."""

    implementation: Implementation
    reason: str


_overrides: dict[str, Choice] = {}


@cache
def _default(op: str, device_type: str) -> Choice:
    assert op in OPS, op
    problem = _native.problem(device_type)
    if problem is not None:
        return Choice("reference", problem)
    module = _native.extension(device_type)
    assert module is not None
    if op == "causal_attention" and device_type == "cuda":
        return Choice("reference", f"torch's flash attention is the fast one on a GPU; {_documents()}")
    if op == "fp8" and device_type == "cpu":
        return Choice("reference", "a CPU only emulates 8-bit products")
    if op == "product":
        obstacle = "torch's own products are the fast ones on a GPU" if device_type == "cuda" else onednn.obstacle()
        return Choice("reference", obstacle) if obstacle else Choice("compiled", onednn.REASON)
    detail = module.instruction_set() if device_type == "cpu" else "CUDA"
    return Choice("compiled", f"built for {device_type}, {detail}")


def _documents() -> str:
    obstacle = variable_length_attention.obstacle()
    if obstacle is None:
        return "isolated documents are one variable-length call in 16 bit, a loop in fp32"
    return f"isolated documents are a loop: {obstacle}"


def choice(op: str, device_type: str) -> Choice:
    """The implementation of `op` on `device_type` ("cpu", "cuda") and the reason for it."""
    return _overrides.get(op) or _default(op, device_type)


def is_compiled(op: str, *tensors: torch.Tensor) -> bool:
    """Whether `op` runs its compiled kernel on these tensors; the kernels take fp32 and bf16, all of one device."""
    device = tensors[0].device
    if choice(op, device.type).implementation != "compiled":
        return False
    return all(t.dtype in _native.ELEMENT_CODES and t.device == device for t in tensors)


def require_one_device(op: str, **tensors: torch.Tensor) -> None:
    """A kernel is handed bare pointers, so an operand on another device has to be refused before; names the first."""
    (first, tensor), *others = tensors.items()
    for name, other in others:
        if other.device != tensor.device:
            raise ValueError(
                f"{op}: {name} is on {other.device} and {first} on {tensor.device}; move them to one device"
            )


@contextmanager
def override(op: str, implementation: Implementation) -> Iterator[None]:
    """Run `op` (or "all") with this implementation inside the block; for tests and benchmarks."""
    names = OPS if op == "all" else (op,)
    saved = dict(_overrides)
    _overrides.update({name: Choice(implementation, "overridden") for name in names})
    try:
        yield
    finally:
        _overrides.clear()
        _overrides.update(saved)
