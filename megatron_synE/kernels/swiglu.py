"""SwiGLU on the concatenated gate and up projections. N tokens, F feed-forward width."""

from __future__ import annotations

import torch

from megatron_synE.kernels import reference
from megatron_synE.kernels._native import address, code, launch
from megatron_synE.kernels.selection import is_compiled


def swiglu(x: torch.Tensor) -> torch.Tensor:
    """silu(gate) * up for x [..., 2F] = [gate, up], megatron-core's order in linear_fc1. Returns [..., F]."""
    if x.dim() == 0 or x.shape[-1] % 2:
        raise ValueError(f"x {tuple(x.shape)} must end in an even dimension: gate and up of the same width")
    if not is_compiled("swiglu", x):
        return reference.swiglu(x)
    return _swiglu(x.reshape(-1, x.shape[-1])).view(*x.shape[:-1], x.shape[-1] // 2)


@torch.library.custom_op("syne::swiglu", mutates_args=())
def _swiglu(x_N2F: torch.Tensor) -> torch.Tensor:
    x = x_N2F.contiguous()
    y = x.new_empty(x.shape[0], x.shape[1] // 2)
    launch("swiglu_forward", x.device, code(x), address(x), address(y), *y.shape)
    return y


@torch.library.custom_op("syne::swiglu_backward", mutates_args=())
def _swiglu_backward(dy_NF: torch.Tensor, x_N2F: torch.Tensor) -> torch.Tensor:
    dy, x = dy_NF.contiguous(), x_N2F.contiguous()
    dx = torch.empty_like(x)
    launch("swiglu_backward", x.device, code(x), address(dy), address(x), address(dx), *dy.shape)
    return dx


@_swiglu.register_fake
def _(x_N2F):
    return x_N2F.new_empty(x_N2F.shape[0], x_N2F.shape[1] // 2)


@_swiglu_backward.register_fake
def _(dy_NF, x_N2F):
    return torch.empty_like(x_N2F, memory_format=torch.contiguous_format)


def _save(ctx, inputs, output) -> None:
    ctx.save_for_backward(inputs[0])


def _backward(ctx, dy):
    (x,) = ctx.saved_tensors
    return _swiglu_backward(dy, x)


_swiglu.register_autograd(_backward, setup_context=_save)
