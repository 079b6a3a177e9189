"""Training kernels: one public signature per op; `reference` is the oracle, `selection` says what runs and why."""

from megatron_synE.kernels.adamw import AdamWBuffers, adamw_, adamw_all_, l2_norm, scale_, sum_of_squares
from megatron_synE.kernels.attention import (
    causal_attention,
    packed_self_attention,
    rotary_self_attention,
    torch_causal_attention,
)
from megatron_synE.kernels.branched_attention import merge_, partial_attention
from megatron_synE.kernels.fused_adamw import FusedAdamW, ParameterwiseOptimizer
from megatron_synE.kernels.host_memory import (
    clear_,
    return_large_buffers,
    saves_memory_when_sparse,
    scale_written_,
)
from megatron_synE.kernels.linear_cross_entropy import linear_cross_entropy
from megatron_synE.kernels.precision_aware_adamw import PrecisionAwareAdamW
from megatron_synE.kernels.product import product
from megatron_synE.kernels.rms_norm import add_rms_norm, rms_norm
from megatron_synE.kernels.rope import rope_, rope_unpack
from megatron_synE.kernels.selection import Choice, choice, override
from megatron_synE.kernels.spans import Span, VariableLengthSpans
from megatron_synE.kernels.swiglu import drop_until_backward, swiglu
from megatron_synE.kernels.variable_length_attention import takes_variable_lengths
from megatron_synE.kernels.weight_gradient import (
    add_to_main_grad,
    placeholder_gradient,
    wgrad_gemm_accum_fp32,
)

__all__ = [
    "AdamWBuffers",
    "Choice",
    "FusedAdamW",
    "ParameterwiseOptimizer",
    "PrecisionAwareAdamW",
    "Span",
    "VariableLengthSpans",
    "adamw_",
    "adamw_all_",
    "add_rms_norm",
    "add_to_main_grad",
    "causal_attention",
    "choice",
    "clear_",
    "drop_until_backward",
    "l2_norm",
    "linear_cross_entropy",
    "merge_",
    "override",
    "packed_self_attention",
    "partial_attention",
    "placeholder_gradient",
    "product",
    "return_large_buffers",
    "rms_norm",
    "rope_",
    "rope_unpack",
    "rotary_self_attention",
    "saves_memory_when_sparse",
    "scale_",
    "scale_written_",
    "sum_of_squares",
    "swiglu",
    "takes_variable_lengths",
    "torch_causal_attention",
    "wgrad_gemm_accum_fp32",
]
