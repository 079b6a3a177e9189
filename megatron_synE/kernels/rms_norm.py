"""RMSNorm, alone or with the residual addition in front of it. N tokens, H hidden."""

from __future__ import annotations

import torch

from megatron_synE.kernels import reference
from megatron_synE.kernels._native import address, code, launch
from megatron_synE.kernels.op import kernel_op
from megatron_synE.kernels.selection import is_compiled


def rms_norm(x: torch.Tensor, weight_H: torch.Tensor, eps: float) -> torch.Tensor:
    """weight * x / sqrt(mean(x^2) + eps) over the last dimension, computed in fp32 and rounded once.

    x is [..., H] in fp32 or bf16 (other dtypes go to the reference), weight [H] of the same dtype.
    """
    _check(x, weight_H)
    if not is_compiled("rms_norm", x, weight_H):
        return reference.rms_norm(x, weight_H, eps)
    y, _ = _rms_norm(x.reshape(-1, x.shape[-1]), weight_H, eps)
    return y.view(x.shape)


def add_rms_norm(
    x: torch.Tensor, residual: torch.Tensor, weight_H: torch.Tensor, eps: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """(rms_norm(x + residual), x + residual) in one pass; the sum goes on as the next residual."""
    _check(x, weight_H)
    if x.shape != residual.shape or x.dtype != residual.dtype:
        raise ValueError(f"residual is {residual.shape} {residual.dtype}, x is {x.shape} {x.dtype}: they must agree")
    if not is_compiled("rms_norm", x, residual, weight_H):
        return reference.add_rms_norm(x, residual, weight_H, eps)
    width = x.shape[-1]
    y, summed, _ = _add_rms_norm(x.reshape(-1, width), residual.reshape(-1, width), weight_H, eps)
    return y.view(x.shape), summed.view(x.shape)


def _check(x: torch.Tensor, weight: torch.Tensor) -> None:
    if weight.dim() != 1 or x.dim() == 0 or x.shape[-1] != weight.shape[0]:
        raise ValueError(f"weight {tuple(weight.shape)} does not fit the last dimension of x {tuple(x.shape)}")
    if x.dtype != weight.dtype:
        raise ValueError(f"x is {x.dtype} and weight {weight.dtype}: they must have one dtype")


@kernel_op("syne::rms_norm")
def _rms_norm(x_NH: torch.Tensor, weight_H: torch.Tensor, eps: float) -> tuple[torch.Tensor, torch.Tensor]:
    x, weight = x_NH.contiguous(), weight_H.contiguous()
    y = torch.empty_like(x)
    rstd = torch.empty(x.shape[0], dtype=torch.float32, device=x.device)
    pointers = (address(x), 0, address(weight), 0, address(y), address(rstd))
    launch("rms_norm_forward", x.device, code(x), *pointers, *x.shape, eps)
    return y, rstd


@kernel_op("syne::add_rms_norm")
def _add_rms_norm(
    x_NH: torch.Tensor, residual_NH: torch.Tensor, weight_H: torch.Tensor, eps: float
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    x, residual, weight = x_NH.contiguous(), residual_NH.contiguous(), weight_H.contiguous()
    y, summed = torch.empty_like(x), torch.empty_like(x)
    rstd = torch.empty(x.shape[0], dtype=torch.float32, device=x.device)
    pointers = (address(x), address(residual), address(weight), address(summed), address(y), address(rstd))
    launch("rms_norm_forward", x.device, code(x), *pointers, *x.shape, eps)
    return y, summed, rstd


@kernel_op("syne::rms_norm_backward")
def _rms_norm_backward(
    dy_NH: torch.Tensor,
    dsummed_NH: torch.Tensor | None,
    x_NH: torch.Tensor,
    weight_H: torch.Tensor,
    rstd_N: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor]:
    dy, x, weight = dy_NH.contiguous(), x_NH.contiguous(), weight_H.contiguous()
    dsummed = None if dsummed_NH is None else dsummed_NH.contiguous()
    dx = torch.empty_like(x)
    parts = () if x.device.type == "cpu" else (_num_parts(x),)
    dweight = torch.empty(*parts, *weight.shape, dtype=torch.float32, device=x.device)
    pointers = (dy, dsummed, x, weight, rstd_N, dx, dweight)
    launch("rms_norm_backward", x.device, code(x), *map(address, pointers), *parts, *x.shape)
    return dx, (dweight.sum(0) if parts else dweight).to(weight.dtype)


def _num_parts(x_NH: torch.Tensor) -> int:
    """Blocks that share the rows on a GPU; each leaves its part of the weight's gradient, and no atomics are needed."""
    multiprocessors = torch.cuda.get_device_properties(x_NH.device).multi_processor_count
    return max(1, min(x_NH.shape[0], 2 * multiprocessors))


@_rms_norm.register_fake
def _(x_NH, weight_H, eps):
    return torch.empty_like(x_NH), x_NH.new_empty(x_NH.shape[0], dtype=torch.float32)


@_add_rms_norm.register_fake
def _(x_NH, residual_NH, weight_H, eps):
    return torch.empty_like(x_NH), torch.empty_like(x_NH), x_NH.new_empty(x_NH.shape[0], dtype=torch.float32)


@_rms_norm_backward.register_fake
def _(dy_NH, dsummed_NH, x_NH, weight_H, rstd_N):
    return torch.empty_like(x_NH), torch.empty_like(weight_H)


def _save(ctx, inputs, output) -> None:
    x, weight, _ = inputs
    ctx.save_for_backward(x, weight, output[1])
    ctx.set_materialize_grads(False)


def _backward(ctx, dy, _):
    x, weight, rstd = ctx.saved_tensors
    if dy is None:
        return None, None, None
    dx, dweight = _rms_norm_backward(dy, None, x, weight, rstd)
    return dx, dweight, None


def _save_add(ctx, inputs, output) -> None:
    _, summed, rstd = output
    ctx.save_for_backward(summed, inputs[2], rstd)
    ctx.set_materialize_grads(False)


def _backward_add(ctx, dy, dsummed, _):
    summed, weight, rstd = ctx.saved_tensors
    if dy is None:
        return dsummed, dsummed, None, None
    dx, dweight = _rms_norm_backward(dy, dsummed, summed, weight, rstd)
    return dx, dx, dweight, None


_rms_norm.register_autograd(_backward, setup_context=_save)
_add_rms_norm.register_autograd(_backward_add, setup_context=_save_add)
