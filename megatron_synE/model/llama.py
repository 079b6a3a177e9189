"""Llama as megatron-core's GPTModel. Shapes: S sequence, B batch, V this process's part of the padded vocabulary."""

from __future__ import annotations

from typing import Any

import torch
from megatron.core.models.gpt.gpt_model import GPTModel


class LlamaModel(GPTModel):
    """GPTModel whose loss leaves out the padding rows of the vocabulary.

    The padding depends on tensor_model_parallel_size; without this, so would the softmax's denominator.
    """

    def __init__(self, *args: Any, unpadded_vocab_size: int, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.unpadded_vocab_size = unpadded_vocab_size

    def num_vocab_columns(self) -> int:
        """How many of this process's output columns are real token ids."""
        tp_group = self.pg_collection.tp
        columns = self.vocab_size // tp_group.size()
        return min(max(self.unpadded_vocab_size - columns * tp_group.rank(), 0), columns)

    def compute_language_model_loss(self, labels: torch.Tensor, logits: torch.Tensor) -> torch.Tensor:
        """`[B, S]` labels and `[S, B, V]` logits → `[B, S]` fp32 loss of each token."""
        real = self.num_vocab_columns()
        if real < logits.shape[-1]:
            padding_V = torch.arange(logits.shape[-1], device=logits.device) >= real
            logits = logits.masked_fill(padding_V, float("-inf"))
        return super().compute_language_model_loss(labels, logits)
