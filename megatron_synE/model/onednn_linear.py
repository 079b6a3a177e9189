"""megatron-core's parallel linear layers with fp32 products by oneDNN, on processors where that is faster than torch's.

Weights, gradients and checkpoints stay what they are, and so does what travels between processes.

Legend: S sequence, B batch, N = S * B tokens, I input features, O output features.
"""

from __future__ import annotations

from typing import Any

import torch
from megatron.core.tensor_parallel.layers import ColumnParallelLinear, RowParallelLinear

from megatron_synE.kernels import product
from megatron_synE.kernels.weight_gradient import accumulate_, placeholder_gradient
from megatron_synE.model.parallel_products import gathered, main_grad_of, reduce_input_gradient, replace_linear_layers


def use_onednn_products(model: Any) -> None:
    """Give the four linear layers of each Llama layer products by oneDNN, in place."""
    for layer in model.decoder.layers:
        replace_linear_layers(layer, OneDnnColumnParallelLinear, OneDnnRowParallelLinear)


class _OneDnnProducts:
    """The product of a parallel linear layer."""

    def _forward_impl(
        self, input: torch.Tensor, weight: torch.Tensor, *, allreduce_dgrad: bool, sequence_parallel: bool,
        gradient_accumulation_fusion: bool, tp_group: torch.distributed.ProcessGroup, **unused: Any,
    ) -> torch.Tensor:  # fmt: skip
        return _OneDnnLinear.apply(
            input, weight, gradient_accumulation_fusion, allreduce_dgrad, tp_group if sequence_parallel else None,
            tp_group,
        )  # fmt: skip


class OneDnnColumnParallelLinear(_OneDnnProducts, ColumnParallelLinear):
    """ColumnParallelLinear with fp32 products by oneDNN."""


class OneDnnRowParallelLinear(_OneDnnProducts, RowParallelLinear):
    """RowParallelLinear with fp32 products by oneDNN."""


class _OneDnnLinear(torch.autograd.Function):
    """input [S, B, I] @ weight [O, I]^T, with the collectives of megatron-core's own function beside the products."""

    @staticmethod
    def forward(
        ctx, input_SBI: torch.Tensor, weight_OI: torch.Tensor, fuse: bool, allreduce_dgrad: bool, sequence_group: Any,
        tp_group: Any,
    ) -> torch.Tensor:  # fmt: skip
        ctx.save_for_backward(input_SBI, weight_OI)
        ctx.main_grad = main_grad_of(weight_OI) if fuse else None
        ctx.allreduce_dgrad, ctx.sequence_group, ctx.tp_group = allreduce_dgrad, sequence_group, tp_group
        whole_NI, gathering = gathered(_rows(input_SBI), sequence_group)
        if gathering is not None:
            gathering.wait()
        output_NO = product(whole_NI, weight_OI.t())
        # RoPE rotates it in place, which autograd refuses for what is a view here; torch's matmul does the same.
        return torch.ops.aten._unsafe_view(output_NO, (-1, *input_SBI.shape[1:-1], len(weight_OI)))

    @staticmethod
    def backward(ctx, gradient_SBO: torch.Tensor):
        input_SBI, weight_OI = ctx.saved_tensors
        whole_NI, gathering = gathered(_rows(input_SBI), ctx.sequence_group)
        gradient_NO = _rows(gradient_SBO)
        dinput_NI, reducing = reduce_input_gradient(
            product(gradient_NO, weight_OI), ctx.sequence_group, ctx.tp_group, ctx.allreduce_dgrad
        )
        if gathering is not None:
            gathering.wait()
        if ctx.main_grad is None:
            dweight: torch.Tensor | None = product(gradient_NO.t(), whole_NI)
        else:
            weight_OI.main_grad = ctx.main_grad
            accumulate_(ctx.main_grad, whole_NI, gradient_NO)
            dweight = placeholder_gradient(weight_OI)
        if reducing is not None:
            reducing.wait()
        return dinput_NI.view_as(input_SBI), dweight, None, None, None, None


def _rows(tensor_SBI: torch.Tensor) -> torch.Tensor:
    return tensor_SBI.reshape(-1, tensor_SBI.shape[-1])
