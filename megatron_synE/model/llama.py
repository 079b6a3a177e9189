"""Llama as megatron-core's GPTModel.

Shapes: S sequence, B batch, H hidden, V this process's part of the padded vocabulary, M tokens that are asked for.
"""

from __future__ import annotations

from typing import Any

import torch
from megatron.core.models.gpt.gpt_model import GPTModel
from megatron.core.tensor_parallel.mappings import gather_from_sequence_parallel_region

from megatron_synE.model.key_value_cache import CachedTokens
from megatron_synE.model.targets import Targets, log_probabilities


class LlamaModel(GPTModel):
    """GPTModel whose loss leaves out the padding rows of the vocabulary, and that says how probable given tokens are.

    The padding depends on tensor_model_parallel_size; without this, so would the softmax's denominator.
    With `Targets` for labels, the last pipeline stage returns `log_probabilities` of them, `[M, 2]`, and no logits.
    """

    def __init__(self, *args: Any, unpadded_vocab_size: int, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.unpadded_vocab_size = unpadded_vocab_size

    def num_vocab_columns(self) -> int:
        """How many of this process's output columns are real token ids."""
        tp_group = self.pg_collection.tp
        columns = self.vocab_size // tp_group.size()
        return min(max(self.unpadded_vocab_size - columns * tp_group.rank(), 0), columns)

    def token_multiple(self) -> int:
        """What the number of tokens of a sequence has to be a multiple of, in this layout."""
        config = self.config
        if config.params_dtype == torch.bfloat16:
            unit = 16  # 8-bit products, which some layers of a bf16 model may have, take no fewer
        else:
            unit = 2 if config.context_parallel_size > 1 else 1
        shared_by = config.tensor_model_parallel_size if config.sequence_parallel else 1
        return unit * shared_by * config.context_parallel_size

    def takes_cached_tokens(self) -> bool:
        """Whether its layers see keys of earlier passes (`CachedTokens`)."""
        attentions = [layer.self_attention for layer in self.decoder.layers]
        return self.config.context_parallel_size == 1 and all(
            getattr(module, "takes_cached_tokens", False)
            or getattr(module.core_attention, "takes_cached_tokens", False)
            for module in attentions
        )

    def _preprocess(self, *args: Any, **kwargs: Any) -> tuple[Any, ...]:
        embedded, angles_P11D, *others = super()._preprocess(*args, **kwargs)
        tokens = kwargs.get("packed_seq_params")
        if isinstance(tokens, CachedTokens):
            angles_P11D = angles_P11D[tokens.positions_N]
        return embedded, angles_P11D, *others

    def compute_language_model_loss(self, labels: torch.Tensor, logits: torch.Tensor) -> torch.Tensor:
        """`[B, S]` labels and `[S, B, V]` logits → `[B, S]` fp32 loss of each token."""
        real = self.num_vocab_columns()
        if real < logits.shape[-1]:
            padding_V = torch.arange(logits.shape[-1], device=logits.device) >= real
            logits = logits.masked_fill(padding_V, float("-inf"))
        return super().compute_language_model_loss(labels, logits)

    def _postprocess(self, hidden_states: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        targets = kwargs.get("labels")
        if not self.post_process or not isinstance(targets, Targets):
            return super()._postprocess(hidden_states, *args, **kwargs)
        tp_group = self.pg_collection.tp
        if self.config.sequence_parallel:
            hidden_states = gather_from_sequence_parallel_region(hidden_states, group=tp_group)
        weight = self.shared_embedding_or_output_weight() if self.share_embeddings_and_output_weights else None
        weight_VH = self.output_layer.weight if weight is None else weight
        hidden_UH = hidden_states.flatten(0, 1).index_select(0, targets.places_U)
        return log_probabilities(hidden_UH, weight_VH, targets, self.num_vocab_columns(), tp_group)
