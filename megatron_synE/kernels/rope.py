"""Rotary position embedding on the packed output of the QKV projection, in place.

Legend: N tokens, P positions, G query groups, J heads of a group (its query heads, then one key, then one value head),
D head dimension.
"""

from __future__ import annotations

import math

import torch

from megatron_synE.kernels import reference
from megatron_synE.kernels._native import address, code, launch
from megatron_synE.kernels.selection import is_compiled, require_one_device


def rope_(
    packed: torch.Tensor,
    cos_PD: torch.Tensor,
    sin_PD: torch.Tensor,
    positions_N: torch.Tensor,
    rotated_heads: int,
    shape: tuple[int, int, int, int] | None = None,
) -> torch.Tensor:
    """Rotate the first `rotated_heads` heads (queries and key) of every group, in place; returns `packed`.

    `packed` is [N, G, J, D], or, with that as `shape`, the same elements in any shape: autograd handles an in-place op
    on a projection's output better than on a view of it.

    Half rotation, as Hugging Face's Llama: (a, b) -> (a cos - b sin, b cos + a sin) with a, b the halves of a head.
    cos and sin are fp32 [P, D / 2], positions int64 [N] below P; a position may occur for many tokens, so documents
    that restart at 0 need nothing more. `packed` must be contiguous; the gradient flows through the in-place op.
    """
    shape = tuple(packed.shape) if shape is None else shape  # type: ignore[assignment]
    if shape is None or len(shape) != 4 or math.prod(shape) != packed.numel():
        raise ValueError(f"packed {tuple(packed.shape)} is not, and does not hold, [N, G, J, D] = {shape}")
    tokens, _, heads, head_dim = shape
    if head_dim % 2 or not 0 <= rotated_heads <= heads:
        raise ValueError(f"rope needs an even head dimension and 0 <= rotated_heads <= {heads}, got {head_dim}")
    if cos_PD.shape != sin_PD.shape or cos_PD.shape[-1] * 2 != head_dim or positions_N.shape != (tokens,):
        raise ValueError(
            f"cos {tuple(cos_PD.shape)}, sin {tuple(sin_PD.shape)} and positions {tuple(positions_N.shape)} "
            f"do not fit packed heads {shape}"
        )
    require_one_device("rope_", packed=packed, cos=cos_PD, sin=sin_PD, positions=positions_N)
    if not packed.is_contiguous():
        raise ValueError("rope_ works in place and needs a contiguous tensor; call .contiguous() first")
    if not is_compiled("rope", packed):
        rotated = reference.rope(packed.view(shape), cos_PD, sin_PD, positions_N, rotated_heads)
        return packed.copy_(rotated.view(packed.shape))
    if torch.is_grad_enabled() and packed.requires_grad:
        return _Rope.apply(packed, cos_PD, sin_PD, positions_N, rotated_heads, shape)
    _rope_(packed.view(shape), cos_PD, sin_PD, positions_N, rotated_heads, False)
    return packed


@torch.library.custom_op("syne::rope_", mutates_args=("packed_NGJD",))
def _rope_(
    packed_NGJD: torch.Tensor,
    cos_PD: torch.Tensor,
    sin_PD: torch.Tensor,
    positions_N: torch.Tensor,
    rotated_heads: int,
    inverse: bool,
) -> None:
    assert cos_PD.dtype == sin_PD.dtype == torch.float32 and positions_N.dtype == torch.int64
    cos, sin, positions = cos_PD.contiguous(), sin_PD.contiguous(), positions_N.contiguous()
    tokens, groups, heads, head_dim = packed_NGJD.shape
    pointers = (address(packed_NGJD), address(cos), address(sin), address(positions))
    sizes = (tokens, groups, heads, rotated_heads, head_dim)
    launch("rope_in_place", packed_NGJD.device, code(packed_NGJD), *pointers, *sizes, inverse)


@_rope_.register_fake
def _(packed_NGJD, cos_PD, sin_PD, positions_N, rotated_heads, inverse):
    return None


class _Rope(torch.autograd.Function):
    """torch.library refuses an autograd formula for a mutating op; a rotation's gradient is the inverse rotation."""

    @staticmethod
    def forward(ctx, packed, cos, sin, positions, rotated_heads, shape):
        ctx.save_for_backward(cos, sin, positions)
        ctx.rotated_heads, ctx.shape = rotated_heads, shape
        ctx.mark_dirty(packed)
        _rope_(packed.view(shape), cos, sin, positions, rotated_heads, False)
        return packed

    @staticmethod
    def backward(ctx, grad):
        cos, sin, positions = ctx.saved_tensors
        grad = grad.clone(memory_format=torch.contiguous_format)
        _rope_(grad.view(ctx.shape), cos, sin, positions, ctx.rotated_heads, True)
        return grad, None, None, None, None, None
