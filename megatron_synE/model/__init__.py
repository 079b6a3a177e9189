"""Llama on megatron-core's GPTModel: configuration, layer specs, and one pipeline stage's chunks."""

from megatron_synE.model.build import build_model_chunks
from megatron_synE.model.transformer_config import make_transformer_config, padded_vocab_size

__all__ = ["build_model_chunks", "make_transformer_config", "padded_vocab_size"]
