"""Rotary position embedding on the packed output of the QKV projection, in place or while it is taken apart.

Legend: N tokens, P positions, G query groups, J heads of a group (its R query heads, then one key, then one value
head), D head dimension.
"""

from __future__ import annotations

import math

import torch

from megatron_synE.kernels import reference
from megatron_synE.kernels._native import address, code, launch
from megatron_synE.kernels.op import kernel_op
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
    shape = _checked_shape(packed, cos_PD, sin_PD, positions_N, shape)
    if not 0 <= rotated_heads <= shape[2]:
        raise ValueError(f"rope needs 0 <= rotated_heads <= {shape[2]}, got {rotated_heads}")
    if not is_compiled("rope", packed):
        rotated = reference.rope(packed.view(shape), cos_PD, sin_PD, positions_N, rotated_heads)
        return packed.copy_(rotated.view(packed.shape))
    if torch.is_grad_enabled() and packed.requires_grad:
        return _Rope.apply(packed, cos_PD, sin_PD, positions_N, rotated_heads, shape)
    _rope_(packed.view(shape), cos_PD, sin_PD, positions_N, rotated_heads, False)
    return packed


def rope_unpack(
    packed: torch.Tensor,
    cos_PD: torch.Tensor,
    sin_PD: torch.Tensor,
    positions_N: torch.Tensor,
    shape: tuple[int, int, int, int] | None = None,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Queries [N, G, R, D] and keys [N, G, D], rotated as `rope_` does, and values [N, G, D].

    On a GPU one pass writes all three contiguous, and one pass packs their gradients. Elsewhere `packed` is rotated in
    place, and they are views of it; so its old content is lost to the caller either way.
    """
    shape = _checked_shape(packed, cos_PD, sin_PD, positions_N, shape)
    if shape[2] < 3:
        raise ValueError(f"rope_unpack needs query heads, a key and a value in each group, got {shape[2]} heads")
    if packed.is_cuda and is_compiled("rope", packed):
        return _rope_unpack(packed.view(shape), cos_PD, sin_PD, positions_N)
    rotated_NGJD = rope_(packed, cos_PD, sin_PD, positions_N, shape[2] - 1, shape).view(shape)
    return rotated_NGJD[:, :, :-2], rotated_NGJD[:, :, -2], rotated_NGJD[:, :, -1]


def _checked_shape(
    packed: torch.Tensor,
    cos_PD: torch.Tensor,
    sin_PD: torch.Tensor,
    positions_N: torch.Tensor,
    shape: tuple[int, int, int, int] | None,
) -> tuple[int, int, int, int]:
    """[N, G, J, D], if the tensors fit it."""
    shape = tuple(packed.shape) if shape is None else shape  # type: ignore[assignment]
    if shape is None or len(shape) != 4 or math.prod(shape) != packed.numel():
        raise ValueError(f"packed {tuple(packed.shape)} is not, and does not hold, [N, G, J, D] = {shape}")
    if shape[3] % 2:
        raise ValueError(f"rope needs an even head dimension, got {shape[3]}")
    if cos_PD.shape != sin_PD.shape or cos_PD.shape[-1] * 2 != shape[3] or positions_N.shape != (shape[0],):
        raise ValueError(
            f"cos {tuple(cos_PD.shape)}, sin {tuple(sin_PD.shape)} and positions {tuple(positions_N.shape)} "
            f"do not fit packed heads {shape}"
        )
    require_one_device("rope", packed=packed, cos=cos_PD, sin=sin_PD, positions=positions_N)
    if not packed.is_contiguous():
        raise ValueError("rope needs the packed heads in a contiguous tensor; call .contiguous() first")
    return shape


@kernel_op("syne::rope_", mutates_args=("packed_NGJD",))
def _rope_(
    packed_NGJD: torch.Tensor,
    cos_PD: torch.Tensor,
    sin_PD: torch.Tensor,
    positions_N: torch.Tensor,
    rotated_heads: int,
    inverse: bool,
) -> None:
    tables = _tables(cos_PD, sin_PD, positions_N)
    tokens, groups, heads, head_dim = packed_NGJD.shape
    sizes = (tokens, groups, heads, rotated_heads, head_dim)
    pointers = map(address, (packed_NGJD, *tables))
    launch("rope_in_place", packed_NGJD.device, code(packed_NGJD), *pointers, *sizes, inverse)


def _tables(cos_PD: torch.Tensor, sin_PD: torch.Tensor, positions_N: torch.Tensor) -> tuple[torch.Tensor, ...]:
    assert cos_PD.dtype == sin_PD.dtype == torch.float32 and positions_N.dtype == torch.int64
    return cos_PD.contiguous(), sin_PD.contiguous(), positions_N.contiguous()


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


@kernel_op("syne::rope_unpack")
def _rope_unpack(
    packed_NGJD: torch.Tensor, cos_PD: torch.Tensor, sin_PD: torch.Tensor, positions_N: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    parts = _empty_parts(packed_NGJD)
    tensors = (packed_NGJD, *parts, *_tables(cos_PD, sin_PD, positions_N))
    launch("rope_unpack", packed_NGJD.device, code(packed_NGJD), *map(address, tensors), *packed_NGJD.shape)
    return parts


@kernel_op("syne::rope_unpack_backward")
def _rope_unpack_backward(
    dquery_NGRD: torch.Tensor,
    dkey_NGD: torch.Tensor,
    dvalue_NGD: torch.Tensor,
    cos_PD: torch.Tensor,
    sin_PD: torch.Tensor,
    positions_N: torch.Tensor,
) -> torch.Tensor:
    dpacked = _empty_packed(dquery_NGRD)
    parts = (dquery_NGRD.contiguous(), dkey_NGD.contiguous(), dvalue_NGD.contiguous())
    tensors = (dpacked, *parts, *_tables(cos_PD, sin_PD, positions_N))
    launch("rope_pack_inverse", dpacked.device, code(dpacked), *map(address, tensors), *dpacked.shape)
    return dpacked


def _empty_parts(packed_NGJD: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    tokens, groups, heads, head_dim = packed_NGJD.shape
    key, value = (packed_NGJD.new_empty(tokens, groups, head_dim) for _ in range(2))
    return packed_NGJD.new_empty(tokens, groups, heads - 2, head_dim), key, value


def _empty_packed(query_NGRD: torch.Tensor) -> torch.Tensor:
    tokens, groups, repeats, head_dim = query_NGRD.shape
    return query_NGRD.new_empty(tokens, groups, repeats + 2, head_dim)


@_rope_unpack.register_fake
def _(packed_NGJD, cos_PD, sin_PD, positions_N):
    return _empty_parts(packed_NGJD)


@_rope_unpack_backward.register_fake
def _(dquery_NGRD, dkey_NGD, dvalue_NGD, cos_PD, sin_PD, positions_N):
    return _empty_packed(dquery_NGRD)


def _save(ctx, inputs, output) -> None:
    ctx.save_for_backward(*inputs[1:])


def _backward(ctx, dquery, dkey, dvalue):
    return _rope_unpack_backward(dquery, dkey, dvalue, *ctx.saved_tensors), None, None, None


_rope_unpack.register_autograd(_backward, setup_context=_save)
