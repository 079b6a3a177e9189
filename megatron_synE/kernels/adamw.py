"""Gradient norm and AdamW over flat buffers."""

from __future__ import annotations

import torch

from megatron_synE.kernels import reference
from megatron_synE.kernels._native import address, code, launch
from megatron_synE.kernels.selection import is_compiled


def sum_of_squares(values: torch.Tensor) -> float:
    """Sum of the squares of a contiguous fp32 or bf16 tensor, accumulated beyond fp32."""
    if not is_compiled("adamw", values) or not values.is_contiguous():
        return reference.sum_of_squares(values)
    arguments = (code(values), address(values), values.numel())
    if values.device.type == "cpu":
        return launch("sum_of_squares", values.device, *arguments)
    total = torch.zeros(1, dtype=torch.float64, device=values.device)
    launch("sum_of_squares", values.device, *arguments, address(total))
    return float(total)


def scale_(values: torch.Tensor, factor: float) -> None:
    """values *= factor for a contiguous fp32 tensor."""
    if is_compiled("adamw", values) and values.is_contiguous() and values.dtype == torch.float32:
        launch("scale_in_place", values.device, address(values), values.numel(), factor)
    else:
        values.mul_(factor)


def l2_norm(tensors: list[torch.Tensor], device: torch.device) -> torch.Tensor:
    """Norm of all elements together, fp32 `[1]` on `device`."""
    if all(t.device.type == "cpu" for t in tensors):
        return torch.tensor([sum(map(sum_of_squares, tensors)) ** 0.5], dtype=torch.float32, device=device)
    return torch.stack(torch._foreach_norm(tensors)).norm().float().reshape(1)


def adamw_(
    param: torch.Tensor,
    grad: torch.Tensor,
    exp_avg: torch.Tensor,
    exp_avg_sq: torch.Tensor,
    *,
    lr: float,
    betas: tuple[float, float],
    eps: float,
    weight_decay: float,
    step: int,
    grad_scale: float = 1.0,
    model_param: torch.Tensor | None = None,
    remainder: torch.Tensor | None = None,
) -> None:
    """One AdamW step in place (arXiv 1711.05101, bias-corrected as torch.optim.AdamW).

    `param` is fp32, and `model_param` (bf16), if given, receives the rounded parameter. Or `param` is bf16, and
    `remainder` (int16) is what it lacks of fp32: see `reference.split_fp32`. Gradient and moments are each fp32 or
    bf16; arithmetic is fp32, and moments are rounded to the nearest, halves to even. The gradient is multiplied by
    `grad_scale` (clipping) on the fly. `step` counts from 1. Shapes agree; all contiguous.
    """
    tensors = [param, grad, exp_avg, exp_avg_sq] + ([] if model_param is None else [model_param])
    if any(t.shape != param.shape for t in tensors) or (remainder is not None and remainder.shape != param.shape):
        raise ValueError(f"adamw_ needs tensors of one shape, got {[tuple(t.shape) for t in tensors]}")
    if step < 1:
        raise ValueError(f"step counts from 1, got {step}")
    if remainder is not None:
        if (param.dtype, remainder.dtype) != (torch.bfloat16, torch.int16) or model_param is not None:
            raise ValueError("adamw_ takes an int16 remainder with a bf16 parameter, which is itself the model's")
        fits = remainder.is_contiguous() and remainder.device == param.device
    else:
        fits = param.dtype == torch.float32 and (model_param is None or model_param.dtype == torch.bfloat16)
    if not fits or not all(t.is_contiguous() for t in tensors) or not is_compiled("adamw", *tensors):
        reference.adamw(
            param,
            grad,
            exp_avg,
            exp_avg_sq,
            model_param,
            remainder,
            lr=lr,
            beta1=betas[0],
            beta2=betas[1],
            eps=eps,
            weight_decay=weight_decay,
            step=step,
            grad_scale=grad_scale,
        )
        return
    main, model = (param, model_param) if remainder is None else (None, param)
    codes = tuple(map(code, (grad, exp_avg, exp_avg_sq)))
    pointers = tuple(map(address, (main, model, remainder, grad, exp_avg, exp_avg_sq)))
    corrections = (1 - betas[0] ** step, 1 - betas[1] ** step)
    hyper = (lr, *betas, eps, weight_decay, *corrections, grad_scale)
    launch("adamw", param.device, *codes, *pointers, param.numel(), *hyper)
