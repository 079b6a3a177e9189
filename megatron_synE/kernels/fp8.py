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
    """A matrix `values / scale`."""

    values: torch.Tensor
    """8-bit, contiguous."""
    scale: torch.Tensor
    """fp32 scalar on the same device, a power of two."""

    def transposed(self) -> Quantized:
        """The transposed matrix, contiguous again: a copy of a byte a number."""
        return Quantized(self.values.t().contiguous(), self.scale)


def largest_magnitude(tensor: torch.Tensor) -> torch.Tensor:
    """fp32 scalar; nan where there is one."""
    if is_compiled("fp8", tensor):
        dense, magnitude = tensor.contiguous(), tensor.new_empty((), dtype=torch.float32)
        launch("largest_magnitude", dense.device, code(dense), address(dense), dense.numel(), address(magnitude))
        return magnitude
    return torch.linalg.vector_norm(tensor, math.inf).float()


def scale_of(magnitude: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """The largest power of two that leaves numbers up to `magnitude` (fp32 scalar) within the range of `dtype`."""
    ratio = torch.finfo(dtype).max / magnitude.clamp(min=SMALLEST_MAGNITUDE)
    return ratio.view(torch.int32).bitwise_and(_EXPONENT_BITS).view(torch.float32)


def quantize(tensor: torch.Tensor, dtype: torch.dtype, scale: torch.Tensor | None = None) -> Quantized:
    """The nearest 8-bit numbers to those of a matrix in bf16 or fp32; what is not finite makes the product nan.

    Args:
        scale: a `scale_of` that is known already.
    """
    if not is_compiled("fp8", tensor):
        scale = scale_of(largest_magnitude(tensor), dtype) if scale is None else scale
        return Quantized((tensor * scale.to(tensor.dtype)).to(dtype).contiguous(), scale)
    straight = torch.empty(tensor.shape, dtype=dtype, device=tensor.device)
    return Quantized(straight, _quantize_into(tensor, scale, straight, None))


def quantize_transposed(tensor: torch.Tensor, dtype: torch.dtype, scale: torch.Tensor | None = None) -> Quantized:
    """`quantize(...).transposed()`, in one pass on a GPU."""
    if not is_compiled("fp8", tensor):
        return quantize(tensor, dtype, scale).transposed()
    transposed = torch.empty(tensor.t().shape, dtype=dtype, device=tensor.device)
    return Quantized(transposed, _quantize_into(tensor, scale, None, transposed))


def quantize_both_ways(
    tensor: torch.Tensor, dtype: torch.dtype, scale: torch.Tensor | None = None
) -> tuple[Quantized, Quantized]:
    """`quantize` of a matrix and `quantize_transposed` of it, in one pass on a GPU."""
    if not is_compiled("fp8", tensor):
        quantized = quantize(tensor, dtype, scale)
        return quantized, quantized.transposed()
    straight, transposed = (torch.empty(t.shape, dtype=dtype, device=t.device) for t in (tensor, tensor.t()))
    scale = _quantize_into(tensor, scale, straight, transposed)
    return Quantized(straight, scale), Quantized(transposed, scale)


def _quantize_into(
    tensor: torch.Tensor, scale: torch.Tensor | None, straight: torch.Tensor | None, transposed: torch.Tensor | None
) -> torch.Tensor:
    """By the compiled kernel, into those of the two matrices that are given; returns the scale."""
    target = transposed if straight is None else straight
    assert target is not None and tensor.dim() == 2
    matrix = tensor.contiguous()
    scale = scale_of(largest_magnitude(matrix), target.dtype) if scale is None else scale
    assert scale.dtype == torch.float32 and scale.device == matrix.device
    launch(
        "quantize", matrix.device, code(matrix), _FORMAT_CODES[target.dtype], address(matrix), address(scale),
        address(straight), address(transposed), *matrix.shape,
    )  # fmt: skip
    return scale


def scaled_product(left_MK: Quantized, right_NK: Quantized, *, fast_accumulation: bool = False) -> torch.Tensor:
    """bf16 `[M, N]` = left @ right^T, summed in fp32 and rounded once.

    Args:
        fast_accumulation: on a GPU, keep sums in the tensor cores' own registers (about 14 bits): faster, and good
            enough for activations.
    """
    return torch._scaled_mm(
        left_MK.values, right_NK.values.t(), scale_a=left_MK.scale.reciprocal(), scale_b=right_NK.scale.reciprocal(),
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
