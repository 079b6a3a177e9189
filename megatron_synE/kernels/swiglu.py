"""SwiGLU on the concatenated gate and up projections. N tokens, F feed-forward width."""

from __future__ import annotations

import torch

from megatron_synE.kernels import reference
from megatron_synE.kernels._native import address, code, launch
from megatron_synE.kernels.op import kernel_op
from megatron_synE.kernels.selection import is_compiled


def swiglu(x: torch.Tensor, *, overwrite: bool = False) -> torch.Tensor:
    """silu(gate) * up for x [..., 2F] = [gate, up], megatron-core's order in linear_fc1. Returns [..., F].

    With `overwrite` the backward pass puts the gradient of x in the place of x, which nothing else may need then: no
    new memory is touched. A second backward pass raises.
    """
    if x.dim() == 0 or x.shape[-1] % 2:
        raise ValueError(f"x {tuple(x.shape)} must end in an even dimension: gate and up of the same width")
    if not is_compiled("swiglu", x):
        return reference.swiglu(x)
    shape = (*x.shape[:-1], x.shape[-1] // 2)
    if overwrite and x.is_contiguous():
        return _OverwritingSwiGLU.apply(x).view(shape)
    return _swiglu(x.reshape(-1, x.shape[-1])).view(shape)


def drop_until_backward(activated: torch.Tensor, x: torch.Tensor, output: torch.Tensor) -> None:
    """Free the memory of `activated = swiglu(x)` now, and compute it again when the gradient of `output` arrives.

    `output` must be what was made of `activated`, and all that needs it.
    """
    storage = activated.untyped_storage()
    size = storage.nbytes()
    # .data: the saved tensor's version must not change. The list is emptied so that the hook does not keep x alive.
    operands = [x.data, activated.data]

    def rebuild(_: torch.Tensor) -> None:
        if operands:
            source, target = operands
            operands.clear()
            storage.resize_(size)
            _forward_into(source.view(-1, source.shape[-1]), target)

    output.register_hook(rebuild)
    storage.resize_(0)


def _forward_into(x_N2F: torch.Tensor, y: torch.Tensor) -> None:
    if is_compiled("swiglu", x_N2F) and x_N2F.is_contiguous():
        launch("swiglu_forward", y.device, code(y), address(x_N2F), address(y), x_N2F.shape[0], y.shape[-1])
    else:
        y.copy_(reference.swiglu(x_N2F).view(y.shape))


class _OverwritingSwiGLU(torch.autograd.Function):
    """[..., 2F], contiguous -> [N, F]."""

    @staticmethod
    def forward(ctx, x: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(x)
        y = x.new_empty(x.numel() // max(1, x.shape[-1]), x.shape[-1] // 2)
        _forward_into(x.view(-1, x.shape[-1]) if x.numel() else x.new_empty(len(y), x.shape[-1]), y)
        return y

    @staticmethod
    def backward(ctx, dy_NF: torch.Tensor) -> torch.Tensor:
        (x,) = ctx.saved_tensors
        dy = dy_NF.contiguous()
        launch("swiglu_backward", x.device, code(x), address(dy), address(x), address(x), *dy.shape)
        torch.autograd.graph.increment_version(x)  # a second backward pass finds a changed tensor, and says so
        return x.detach()


@kernel_op("syne::swiglu")
def _swiglu(x_N2F: torch.Tensor) -> torch.Tensor:
    x = x_N2F.contiguous()
    y = x.new_empty(x.shape[0], x.shape[1] // 2)
    launch("swiglu_forward", x.device, code(x), address(x), address(y), *y.shape)
    return y


@kernel_op("syne::swiglu_backward")
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
