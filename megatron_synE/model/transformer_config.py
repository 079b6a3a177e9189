"""A Llama's sizes and a layout → megatron-core's TransformerConfig."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from megatron.core.transformer.transformer_config import TransformerConfig

from megatron_synE.config.model import LlamaArchitecture, ModelConfig
from megatron_synE.config.parallel import ParallelConfig
from megatron_synE.config.precision import PrecisionConfig

DTYPES = {"bf16": torch.bfloat16, "fp32": torch.float32}


def padded_vocab_size(vocab_size: int, model: ModelConfig, parallel: ParallelConfig) -> int:
    """Rows of the embedding and of the output layer: a multiple that every tensor-parallel process can share."""
    multiple = model.make_vocab_size_divisible_by * parallel.tensor_model_parallel_size
    return -(-vocab_size // multiple) * multiple


def make_transformer_config(
    architecture: LlamaArchitecture, model: ModelConfig, parallel: ParallelConfig, precision: PrecisionConfig,
    *, device: torch.device,
) -> TransformerConfig:  # fmt: skip
    """megatron-core's configuration of this Llama under this layout."""
    dtype = DTYPES[precision.dtype]
    interleaved = parallel.virtual_pipeline_model_parallel_size is not None
    return TransformerConfig(
        num_layers=architecture.num_layers,
        hidden_size=architecture.hidden_size,
        ffn_hidden_size=architecture.ffn_hidden_size,
        num_attention_heads=architecture.num_attention_heads,
        num_query_groups=architecture.num_query_groups,
        kv_channels=architecture.head_dim,
        normalization="RMSNorm",
        layernorm_epsilon=architecture.layernorm_epsilon,
        add_bias_linear=False,
        gated_linear_unit=True,
        activation_func=F.silu,
        hidden_dropout=0.0,
        attention_dropout=0.0,
        init_method_std=model.init_method_std,
        tensor_model_parallel_size=parallel.tensor_model_parallel_size,
        pipeline_model_parallel_size=parallel.pipeline_model_parallel_size,
        virtual_pipeline_model_parallel_size=parallel.virtual_pipeline_model_parallel_size,
        context_parallel_size=parallel.context_parallel_size,
        sequence_parallel=parallel.sequence_parallel,
        params_dtype=dtype,
        pipeline_dtype=dtype,
        # With two stages, batched sends and receives of the interleaved schedule would meet between the same two
        # processes and be taken for each other; overlapped ones are issued one by one.
        overlap_p2p_comm=interleaved,
        overlap_p2p_comm_warmup_flush=parallel.overlap_p2p_comm_warmup_flush,
        tp_comm_overlap=parallel.tp_comm_overlap,
        batch_p2p_comm=not interleaved,
        batch_p2p_sync=False,  # a wait of the host after each exchange, for a fault of torch before 2.0
        bf16=precision.dtype == "bf16",
        use_cpu_initialization=device.type == "cpu",
        # The loss is a sum over tokens; finalize_model_grads divides once by the global number of valid tokens.
        calculate_per_token_loss=True,
        # megatron-core's fused activations are compiled by torch at the first step; ours are chosen by the layer spec.
        bias_activation_fusion=False,
        bias_dropout_fusion=False,
        masked_softmax_fusion=False,
        apply_rope_fusion=False,
        gradient_accumulation_fusion=model.transformer_impl == "fused",
        **_recompute(model),
        **(_fp8(precision) if model.transformer_impl == "transformer_engine" else {}),
    )


def _recompute(model: ModelConfig) -> dict[str, Any]:
    if model.recompute == "full":
        return {"recompute_granularity": "full", "recompute_method": "uniform", "recompute_num_layers": 1}
    if model.recompute == "selective":
        return {"recompute_granularity": "selective"}
    return {}


def _fp8(precision: PrecisionConfig) -> dict[str, Any]:
    if precision.fp8 == "none":
        return {}
    return {
        "fp8": precision.fp8,
        "fp8_recipe": precision.fp8_recipe,
        "fp8_amax_history_len": precision.fp8_amax_history_len,
        "fp8_amax_compute_algo": "max",
        "first_last_layers_bf16": precision.first_last_layers_bf16,
        "num_layers_at_start_in_bf16": precision.num_layers_at_start_in_bf16,
        "num_layers_at_end_in_bf16": precision.num_layers_at_end_in_bf16,
    }
