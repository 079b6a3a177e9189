"""megatron-core's parallel linear layers with 8-bit products (`precision.fp8` with `model.transformer_impl: fused`).

Weights, gradients and checkpoints stay what they are. Of each layer's input, its 8-bit form is kept for the backward
pass, and gathered under sequence parallelism: half the memory and half the traffic of bf16. The weight gradient is an
8-bit product too, as in Transformer Engine: a third of the work. It is rounded to bf16, whose error is a sixteenth of
that of its operands, before it is added to the fp32 main gradient.

That product takes both operands transposed. The gradient is written both ways in one pass; so is the input, of which
only the transposed form is kept, unless sequence parallelism gathers its rows. The weight is quantised once for each
pass, for to read it again costs less than to keep a second copy of all weights from the forward to the backward pass.

Legend: S sequence, B batch, N = S * B tokens, I input features, O output features.
"""

from __future__ import annotations

from typing import Any

import torch
from megatron.core.tensor_parallel.layers import ColumnParallelLinear, RowParallelLinear

from megatron_synE.config.precision import PrecisionConfig
from megatron_synE.kernels import add_to_main_grad
from megatron_synE.kernels.fp8 import (
    E4M3,
    E5M2,
    Quantized,
    largest_magnitude,
    quantize,
    quantize_both_ways,
    quantize_transposed,
    scaled_product,
    scaled_product_problem,
)
from megatron_synE.model.parallel_products import (
    gathered,
    linear_layers,
    main_grad_of,
    reduce_input_gradient,
    replace_linear_layers,
)

GRADIENT_FORMATS = {"e4m3": E4M3, "hybrid": E5M2}


def use_fp8_products(model: Any, precision: PrecisionConfig, device: torch.device) -> None:
    """Give the four linear layers of each Llama layer 8-bit products, in place; the model's two ends stay bf16.

    Raises:
        ValueError: the device has none.
    """
    problem = scaled_product_problem(device)
    if problem is not None:
        raise ValueError(f"precision.fp8: {problem}; use none")
    for layer in model.decoder.layers:
        if not precision.is_bf16_layer(layer.layer_number - 1, model.config.num_layers):
            replace_linear_layers(layer, Fp8ColumnParallelLinear, Fp8RowParallelLinear)
            for linear in linear_layers(layer):
                linear.gradient_format = GRADIENT_FORMATS[precision.fp8]


class _Fp8Products:
    """The product of a parallel linear layer."""

    gradient_format: torch.dtype
    """8-bit format of the output's gradient."""
    keeps_input = False
    """Whether the backward pass needs the input itself."""

    def _forward_impl(
        self, input: torch.Tensor, weight: torch.Tensor, *, allreduce_dgrad: bool, sequence_parallel: bool,
        gradient_accumulation_fusion: bool, tp_group: torch.distributed.ProcessGroup, **unused: Any,
    ) -> torch.Tensor:  # fmt: skip
        return _Fp8Linear.apply(
            input, weight, self.gradient_format, gradient_accumulation_fusion, allreduce_dgrad,
            tp_group if sequence_parallel else None, tp_group,
        )  # fmt: skip


class Fp8ColumnParallelLinear(_Fp8Products, ColumnParallelLinear):
    """ColumnParallelLinear with 8-bit products."""


class Fp8RowParallelLinear(_Fp8Products, RowParallelLinear):
    """RowParallelLinear with 8-bit products."""


class _Fp8Linear(torch.autograd.Function):
    """input [S, B, I] @ weight [O, I]^T, with the collectives of megatron-core's own function beside the products."""

    @staticmethod
    def forward(
        ctx, input_SBI: torch.Tensor, weight_OI: torch.Tensor, gradient_format: torch.dtype, fuse: bool,
        allreduce_dgrad: bool, sequence_group: Any, tp_group: Any,
    ) -> torch.Tensor:  # fmt: skip
        magnitude = largest_magnitude(input_SBI)
        if sequence_group is not None:  # one unit for the sequence that is put together
            torch.distributed.all_reduce(magnitude, torch.distributed.ReduceOp.MAX, group=sequence_group)
        rows_NI = input_SBI.reshape(-1, input_SBI.shape[-1])
        if sequence_group is None:
            quantized, kept = quantize_both_ways(rows_NI, E4M3, magnitude)
        else:
            quantized = kept = quantize(rows_NI, E4M3, magnitude)
        weight_magnitude = largest_magnitude(weight_OI)
        weight = quantize(weight_OI, E4M3, weight_magnitude)
        ctx.save_for_backward(kept.values, kept.unit, weight_magnitude, weight_OI)
        ctx.main_grad = main_grad_of(weight_OI) if fuse else None
        ctx.gradient_format, ctx.allreduce_dgrad = gradient_format, allreduce_dgrad
        ctx.sequence_group, ctx.tp_group, ctx.input_shape = sequence_group, tp_group, input_SBI.shape
        whole, handle = _gathered(quantized, sequence_group)
        if handle is not None:
            handle.wait()
        output_NO = scaled_product(whole, weight, fast_accumulation=True)
        # RoPE rotates it in place, which autograd refuses for what is a view here; torch's matmul does the same.
        return torch.ops.aten._unsafe_view(output_NO, (-1, *input_SBI.shape[1:-1], weight_OI.shape[0]))

    @staticmethod
    def backward(ctx, gradient_SBO: torch.Tensor):
        values, unit, weight_magnitude, weight_OI = ctx.saved_tensors
        kept = Quantized(values, unit)
        # The order matters where kernels start in that of their launches: each collective stands before the product
        # that hides it.
        whole, gathering = _gathered(kept, ctx.sequence_group)
        gradient_NO = gradient_SBO.reshape(-1, gradient_SBO.shape[-1])
        gradient, gradient_ON = quantize_both_ways(gradient_NO, ctx.gradient_format)
        dinput_NI = scaled_product(gradient, quantize_transposed(weight_OI, E4M3, weight_magnitude))
        if gathering is not None:
            gathering.wait()
        dinput_NI, reducing = reduce_input_gradient(dinput_NI, ctx.sequence_group, ctx.tp_group, ctx.allreduce_dgrad)
        input_IN = kept if ctx.sequence_group is None else whole.transposed()
        product_OI = scaled_product(gradient_ON, input_IN)
        if ctx.main_grad is None:
            dweight: torch.Tensor | None = product_OI
        else:
            weight_OI.main_grad = ctx.main_grad
            dweight = add_to_main_grad(weight_OI, product_OI)
        if reducing is not None:
            reducing.wait()
        return dinput_NI.view(ctx.input_shape), dweight, None, None, None, None, None


def _gathered(own: Quantized, group: Any) -> tuple[Quantized, Any]:
    """The rows of all processes of the group, in rank order, once the handle (None: at once) is done."""
    # As bytes, for not every library knows the 8-bit formats.
    whole, handle = gathered(own.values.view(torch.uint8), group)
    return Quantized(whole.view(own.values.dtype), own.unit), handle
