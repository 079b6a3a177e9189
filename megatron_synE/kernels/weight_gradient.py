"""Weight gradients added straight to the fp32 main gradient.

megatron-core's gradient_accumulation_fusion calls a module with the names of NVIDIA's Apex, which this one has too.

Legend: N tokens, I input features, O output features.
"""

from __future__ import annotations

import logging
from functools import cache
from typing import Any

import torch

from megatron_synE.kernels import reference
from megatron_synE.kernels._native import address, code, launch
from megatron_synE.kernels.product import product, takes_onednn
from megatron_synE.kernels.selection import is_compiled

logger = logging.getLogger(__name__)

# Bytes of the product that is computed at a time: it is added to the main gradient while it is still in cache.
TILE_BYTES = 4 * 2**20


def wgrad_gemm_accum_fp32(input_NI: torch.Tensor, grad_output_NO: torch.Tensor, main_grad_OI: torch.Tensor) -> None:
    """main_grad (fp32) += grad_output^T @ input; the name and the order are those of Apex."""
    if main_grad_OI.dtype != torch.float32 or not main_grad_OI.is_contiguous():
        raise ValueError("main_grad must be contiguous fp32")
    input_2d = input_NI.reshape(-1, input_NI.shape[-1])
    accumulate_(main_grad_OI, input_2d, grad_output_NO.reshape(-1, grad_output_NO.shape[-1]))


def wgrad_gemm_accum_fp16(input_NI: torch.Tensor, grad_output_NO: torch.Tensor, main_grad_OI: torch.Tensor) -> None:
    """main_grad (16 bit) += grad_output^T @ input."""
    torch.addmm(main_grad_OI, grad_output_NO.t(), input_NI, out=main_grad_OI)


def accumulate_(main_grad_OI: torch.Tensor, input_NI: torch.Tensor, grad_output_NO: torch.Tensor) -> None:
    """main_grad (fp32, contiguous) += grad_output^T @ input, without an fp32 copy of the product.

    On a GPU whose torch can, that is one product, and nothing is rounded to 16 bits on the way.
    """
    if input_NI.dtype == torch.float32 and not takes_onednn(grad_output_NO.t(), input_NI):
        torch.addmm(main_grad_OI, grad_output_NO.t(), input_NI, out=main_grad_OI)
        return
    if not is_compiled("weight_gradient", input_NI, grad_output_NO, main_grad_OI):
        reference.accumulate_weight_gradient(input_NI, grad_output_NO, main_grad_OI)
        return
    if main_grad_OI.is_cuda and adds_products_in_fp32(main_grad_OI.device, input_NI.dtype):
        _add_product(main_grad_OI, grad_output_NO.t(), input_NI)
        return
    outputs, inputs = main_grad_OI.shape
    rows = outputs if main_grad_OI.is_cuda else max(1, TILE_BYTES // (inputs * input_NI.element_size()))
    transposed = grad_output_NO.t()
    for begin in range(0, outputs, rows):
        end = min(begin + rows, outputs)
        _accumulate(main_grad_OI[begin:end], product(transposed[begin:end], input_NI), None)


def _add_product(target_OI: torch.Tensor, left_ON: torch.Tensor, right_NI: torch.Tensor) -> None:
    torch.addmm(target_OI, left_ON, right_NI, out_dtype=torch.float32, out=target_OI)


@cache
def adds_products_in_fp32(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether this torch adds a product of 16-bit matrices to fp32 on this device, without rounding it first.

    Found out by a product of 2^8 + 2^-12, which 16 bits cannot hold; the host waits for it, once. torch 2.8 has the
    argument, but takes an fp32 addend since 2.10 only.
    """
    left = torch.zeros(16, 16, dtype=dtype, device=device)
    left[:, 0], left[:, 1] = 16.0, 2.0**-6
    total = torch.full((16, 16), 0.5, device=device)
    try:
        _add_product(total, left, left.t())
    except (TypeError, RuntimeError) as error:
        logger.info("weight gradients on %s are rounded to 16 bits before they are added: %s", device, error)
        return False
    return bool((total == 0.5 + 2.0**8 + 2.0**-12).all())


def add_to_main_grad(
    weight: torch.Tensor, gradient: torch.Tensor, scale: torch.Tensor | None = None
) -> torch.Tensor | None:
    """weight.main_grad += scale * gradient (`scale`: fp32 scalar tensor, or 1); returns its `placeholder_gradient`."""
    main_grad = holder_of_main_grad(weight).main_grad
    if is_compiled("weight_gradient", gradient, main_grad) and main_grad.dtype == torch.float32:
        _accumulate(main_grad, gradient, scale)
    else:
        main_grad.add_(gradient if scale is None else gradient * scale)
    return placeholder_gradient(weight)


def holder_of_main_grad(weight: torch.Tensor) -> Any:
    """The weight, typed as what megatron-core makes of it: a tensor with the attribute `main_grad`."""
    return weight


def placeholder_gradient(weight: torch.Tensor) -> torch.Tensor | None:
    """What a backward pass that has added to `weight.main_grad` hands autograd for the weight.

    megatron-core's data-parallel hook needs a gradient to arrive, and skips it where `grad_added_to_main_grad` is set;
    where `zero_out_wgrad` is set it adds the gradient nevertheless.
    """
    if not hasattr(weight, "grad_added_to_main_grad"):
        return None
    weight.grad_added_to_main_grad = True
    make = torch.zeros_like if getattr(weight, "zero_out_wgrad", False) else torch.empty_like
    return make(weight, requires_grad=False)


def _accumulate(target: torch.Tensor, addend: torch.Tensor, scale: torch.Tensor | None) -> None:
    assert target.is_contiguous() and addend.is_contiguous() and target.numel() == addend.numel()
    assert scale is None or (scale.dtype == torch.float32 and scale.device == target.device)
    pointers = (address(target), address(addend))
    launch("accumulate", target.device, code(addend), *pointers, target.numel(), address(scale))
