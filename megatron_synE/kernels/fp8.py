"""8-bit matrix products by torch's own scaled products, each tensor with one scale that is found from itself.

The scale is the power of two that brings the largest magnitude just below the format's. Floating-point formats round a
number relative to itself, so a finer scale would gain nothing but the last bit at the lower end; and a power of two
divides out exactly, needs no clamp, and lets the multiplication stay in bf16. No scale is ever read by the host.

A GPU reads a matrix once for its largest magnitude and once more to quantise it, and writes the 8-bit matrix, the
transposed one or both on the way.

Legend: M, N rows, K the dimension that is summed over.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from megatron_synE.kernels._native import address, code, launch
from megatron_synE.kernels.selection import is_compiled

E4M3, E5M2 = torch.float8_e4m3fn, torch.float8_e5m2
ALIGNMENT = 16
"""What every dimension of a product is a multiple of: a GPU reads 8-bit operands in pieces of 16 bytes."""
SMALLEST_MAGNITUDE = 2.0**-100
"""Tensors of nothing but smaller numbers count as zero; their scale has to stay a number."""
FIRST_CAPABILITY = (8, 9)
_EXPONENT_BITS = 0x7F800000
# csrc/cuda/kernels.h has the same codes.
_FORMAT_CODES = {E4M3: 0, E5M2: 1}


@dataclass(frozen=True)
class Quantized:
    """A matrix `values * unit`."""

    values: torch.Tensor
    """8-bit, contiguous."""
    unit: torch.Tensor
    """fp32 scalar on the same device, a power of two."""

    def transposed(self) -> Quantized:
        """The transposed matrix, contiguous again: a copy of a byte a number."""
        return Quantized(self.values.t().contiguous(), self.unit)


def largest_magnitude(tensor: torch.Tensor) -> torch.Tensor:
    """fp32 scalar; nan where there is one."""
    if is_compiled("fp8", tensor):
        dense, magnitude = tensor.contiguous(), tensor.new_empty((), dtype=torch.float32)
        launch("largest_magnitude", dense.device, code(dense), address(dense), dense.numel(), address(magnitude))
        return magnitude
    return torch.linalg.vector_norm(tensor, math.inf).float()


def scale_of(magnitude: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """The largest power of two that leaves numbers up to `magnitude` (fp32 scalar) within the range of `dtype`."""
    # Of two tensors: torch divides a number by a tensor by way of the reciprocal, which is rounded.
    ratio = torch.full_like(magnitude, torch.finfo(dtype).max) / magnitude.clamp(min=SMALLEST_MAGNITUDE)
    return ratio.view(torch.int32).bitwise_and(_EXPONENT_BITS).view(torch.float32)


def quantize(tensor: torch.Tensor, dtype: torch.dtype, magnitude: torch.Tensor | None = None) -> Quantized:
    """The nearest 8-bit numbers to those of a matrix in bf16 or fp32; what is not finite makes the product nan.

    Args:
        magnitude: a `largest_magnitude` that is known already, of this matrix or of one that this is a part of.
    """
    if not is_compiled("fp8", tensor):
        scale = scale_of(largest_magnitude(tensor) if magnitude is None else magnitude, dtype)
        return Quantized((tensor * scale.to(tensor.dtype)).to(dtype).contiguous(), scale.reciprocal())
    straight = torch.empty(tensor.shape, dtype=dtype, device=tensor.device)
    return Quantized(straight, _quantize_into(tensor, magnitude, straight, None))


def quantize_transposed(tensor: torch.Tensor, dtype: torch.dtype, magnitude: torch.Tensor | None = None) -> Quantized:
    """`quantize(...).transposed()`, in one pass on a GPU."""
    if not is_compiled("fp8", tensor):
        return quantize(tensor, dtype, magnitude).transposed()
    transposed = torch.empty(tensor.t().shape, dtype=dtype, device=tensor.device)
    return Quantized(transposed, _quantize_into(tensor, magnitude, None, transposed))


def quantize_both_ways(
    tensor: torch.Tensor, dtype: torch.dtype, magnitude: torch.Tensor | None = None
) -> tuple[Quantized, Quantized]:
    """`quantize` and `quantize_transposed` of a matrix, in one pass on a GPU."""
    if not is_compiled("fp8", tensor):
        quantized = quantize(tensor, dtype, magnitude)
        return quantized, quantized.transposed()
    straight, transposed = (torch.empty(t.shape, dtype=dtype, device=t.device) for t in (tensor, tensor.t()))
    unit = _quantize_into(tensor, magnitude, straight, transposed)
    return Quantized(straight, unit), Quantized(transposed, unit)


def _quantize_into(
    tensor: torch.Tensor, magnitude: torch.Tensor | None, straight: torch.Tensor | None, transposed: torch.Tensor | None
) -> torch.Tensor:
    """By the compiled kernel, into those of the two matrices that are given; returns the unit."""
    target = transposed if straight is None else straight
    assert target is not None and tensor.dim() == 2
    matrix = tensor.contiguous()
    magnitude = largest_magnitude(matrix) if magnitude is None else magnitude
    assert magnitude.dtype == torch.float32 and magnitude.device == matrix.device
    unit = torch.empty_like(magnitude)
    launch(
        "quantize", matrix.device, code(matrix), _FORMAT_CODES[target.dtype], address(matrix), address(magnitude),
        address(unit), address(straight), address(transposed), *matrix.shape,
    )  # fmt: skip
    return unit


def scaled_product(left_MK: Quantized, right_NK: Quantized, *, fast_accumulation: bool = False) -> torch.Tensor:
    """bf16 `[M, N]` = left @ right^T, summed in fp32 and rounded once.

    Args:
        fast_accumulation: on a GPU, keep sums in the tensor cores' own registers (about 14 bits): faster, and good
            enough for activations.
    """
    return torch._scaled_mm(
        left_MK.values, right_NK.values.t(), scale_a=left_MK.unit, scale_b=right_NK.unit,
        out_dtype=torch.bfloat16, use_fast_accum=fast_accumulation,
    )  # fmt: skip


def scaled_product_problem(device: torch.device) -> str | None:
    """Why there are no 8-bit products on this device; None where there are. A CPU emulates them."""
    if device.type != "cuda":
        return None
    capability = torch.cuda.get_device_capability(device)
    if capability >= FIRST_CAPABILITY:
        return None
    name, (major, minor) = torch.cuda.get_device_name(device), capability
    return f"{name} (sm_{major}{minor}) has no 8-bit products, which begin with Ada and Hopper (sm_89)"
