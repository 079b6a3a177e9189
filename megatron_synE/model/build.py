"""Builds the model chunks of one pipeline stage."""

from __future__ import annotations

import torch
from megatron.core import parallel_state
from megatron.core.transformer.transformer_config import TransformerConfig

from megatron_synE.config.model import LlamaArchitecture, ModelConfig
from megatron_synE.config.parallel import ParallelConfig
from megatron_synE.config.precision import PrecisionConfig
from megatron_synE.kernels import choice, return_large_buffers
from megatron_synE.model.fp8_linear import use_fp8_products
from megatron_synE.model.fused_llama import FusedLlamaModel
from megatron_synE.model.layer_specs import block_spec
from megatron_synE.model.llama import LlamaModel
from megatron_synE.model.megatron_hooks import install_gradient_accumulation_fusion
from megatron_synE.model.onednn_linear import use_onednn_products
from megatron_synE.model.rope import inverse_frequencies
from megatron_synE.model.transformer_config import make_transformer_config, padded_vocab_size


def build_model_chunks(
    architecture: LlamaArchitecture,
    model: ModelConfig,
    parallel: ParallelConfig,
    precision: PrecisionConfig,
    *,
    device: torch.device,
) -> list[LlamaModel]:
    """This process's chunks: one, or virtual_pipeline_model_parallel_size of them, on `device`.

    Needs megatron-core's process groups (`megatron_synE.runtime.initialize`).

    Raises:
        ValueError: the device has no 8-bit products, and `precision` wants them.
    """
    if model.transformer_impl == "fused":
        install_gradient_accumulation_fusion()
        return_large_buffers(device)
    config = make_transformer_config(architecture, model, parallel, precision, device=device)
    virtual = parallel.virtual_pipeline_model_parallel_size
    stages: list[int | None] = list(range(virtual)) if virtual else [None]
    chunks = [_build_chunk(architecture, model, parallel, config, vp_stage, device) for vp_stage in stages]
    if model.transformer_impl == "fused" and precision.fp8 != "none":
        for chunk in chunks:
            use_fp8_products(chunk, precision, device)
    elif model.transformer_impl == "fused" and precision.dtype == "fp32" and _takes_onednn(device):
        for chunk in chunks:
            use_onednn_products(chunk)
    return chunks


def _takes_onednn(device: torch.device) -> bool:
    return choice("product", device.type).implementation == "compiled"


def _build_chunk(
    architecture: LlamaArchitecture,
    model: ModelConfig,
    parallel: ParallelConfig,
    config: TransformerConfig,
    vp_stage: int | None,
    device: torch.device,
) -> LlamaModel:
    model_class = FusedLlamaModel if model.transformer_impl == "fused" else LlamaModel
    chunk = model_class(
        config=config,
        transformer_layer_spec=block_spec(config, model.transformer_impl, vp_stage, model.recompute_activation_func),
        vocab_size=padded_vocab_size(architecture.vocab_size, model, parallel),
        max_sequence_length=architecture.max_position_embeddings,
        pre_process=parallel_state.is_pipeline_first_stage(ignore_virtual=False, vp_stage=vp_stage),
        post_process=parallel_state.is_pipeline_last_stage(ignore_virtual=False, vp_stage=vp_stage),
        parallel_output=True,
        share_embeddings_and_output_weights=architecture.tie_word_embeddings,
        position_embedding_type="rope",
        rotary_base=architecture.rotary_base,
        vp_stage=vp_stage,
        unpadded_vocab_size=architecture.vocab_size,
    ).to(device)
    chunk.rotary_pos_emb.inv_freq = inverse_frequencies(architecture, device)
    return chunk
