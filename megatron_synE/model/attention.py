"""The attention core.

Legend: S sequence, B batch, N query heads, R of them for each of the G key/value heads, D head channels,
T packed tokens.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from megatron.core.packed_seq_params import PackedSeqParams
from megatron.core.transformer.module import MegatronModule
from megatron.core.transformer.transformer_config import TransformerConfig

from megatron_synE.kernels import torch_causal_attention
from megatron_synE.model.key_value_cache import CachedTokens
from megatron_synE.model.sequence_layout import document_spans


class DotProductAttention(MegatronModule):
    """Causal attention by torch's `scaled_dot_product_attention`, with grouped key/value heads.

    Takes `[S, B, N, D]` queries and `[S, B, G, D]` keys and values, or, with `packed_seq_params`, `[T, N, D]` and
    `[T, G, D]`: then attention stays inside each document of `cu_seqlens_q`. With `CachedTokens`, `[T, 1, N, D]` and
    `[T, 1, G, D]`.
    """

    takes_cached_tokens = True

    def __init__(self, config: TransformerConfig, layer_number: int, attn_mask_type: Any, attention_type: str,
                 **unused: Any) -> None:  # fmt: skip
        super().__init__(config=config)
        if config.context_parallel_size > 1:
            raise ValueError(
                "parallel.context_parallel_size: the local attention core does not split sequences; "
                "use model.transformer_impl fused or transformer_engine"
            )
        self.layer_number = layer_number

    def forward(
        self,
        query_SBND: torch.Tensor,
        key_SBGD: torch.Tensor,
        value_SBGD: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        attn_mask_type: Any = None,
        attention_bias: torch.Tensor | None = None,
        packed_seq_params: PackedSeqParams | None = None,
    ) -> torch.Tensor:
        """Returns `[S, B, N * D]`, or `[T, N * D]` for packed documents. `attention_mask` is ignored: causal."""
        if isinstance(packed_seq_params, CachedTokens):
            return self._behind_cached(query_SBND, key_SBGD, value_SBGD, packed_seq_params)
        if packed_seq_params is not None:
            return self._documents(query_SBND, key_SBGD, value_SBGD, packed_seq_params)
        seq_length, batch = query_SBND.shape[:2]
        context_BNSD = _causal(*(x.permute(1, 2, 0, 3) for x in (query_SBND, key_SBGD, value_SBGD)))
        return context_BNSD.permute(2, 0, 1, 3).reshape(seq_length, batch, -1)

    def _behind_cached(
        self, query_T1ND: torch.Tensor, key_T1GD: torch.Tensor, value_T1GD: torch.Tensor, tokens: CachedTokens
    ) -> torch.Tensor:
        query_TGRD = query_T1ND.squeeze(1).unflatten(1, (key_T1GD.shape[2], -1))
        key_TGD, value_TGD = key_T1GD.squeeze(1), value_T1GD.squeeze(1)
        scale = 1 / math.sqrt(key_TGD.shape[-1])
        context = tokens.attend(self.layer_number, query_TGRD, key_TGD, value_TGD, scale, plain=True)
        return context.flatten(1).unsqueeze(1)

    @staticmethod
    def _documents(
        query_TND: torch.Tensor, key_TGD: torch.Tensor, value_TGD: torch.Tensor, packed: PackedSeqParams
    ) -> torch.Tensor:
        """Attention inside each document: no mask over the whole pack is ever built."""
        total, groups, dim = key_TGD.shape
        spans = document_spans([0], total, packed.cu_seqlens_q, packed.max_seqlen_q or total)
        query_TBGRD = query_TND.reshape(total, 1, groups, -1, dim)
        key_TBGD, value_TBGD = key_TGD.unsqueeze(1), value_TGD.unsqueeze(1)
        return torch_causal_attention(query_TBGRD, key_TBGD, value_TBGD, 1 / math.sqrt(dim), spans).reshape(total, -1)


def _causal(query_BNSD: torch.Tensor, key_BGSD: torch.Tensor, value_BGSD: torch.Tensor) -> torch.Tensor:
    grouped = query_BNSD.shape[1] != key_BGSD.shape[1]
    return F.scaled_dot_product_attention(query_BNSD, key_BGSD, value_BGSD, is_causal=True, enable_gqa=grouped)
