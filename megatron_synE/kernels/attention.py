"""Causal self-attention over spans of a sequence: whole sequences, isolated documents, context-parallel chunks.

Legend: S queries, T keys, B batch, G key/value heads, R query heads per group, J = R + 2 heads of a packed group,
D head dimension, N = S * B tokens, P positions.
"""

from __future__ import annotations

from itertools import pairwise

import torch
import torch.nn.functional as F
from torch.nn.attention.bias import causal_lower_right

from megatron_synE.kernels.blocked_attention import blocked_causal_attention, packed_causal_attention
from megatron_synE.kernels.rope import rope_, rope_unpack
from megatron_synE.kernels.selection import is_compiled
from megatron_synE.kernels.spans import Span, VariableLengthSpans
from megatron_synE.kernels.variable_length_attention import takes_variable_lengths, variable_length_attention

Spans = list[Span] | VariableLengthSpans


def causal_attention(
    query_SBGRD: torch.Tensor,
    key_TBGD: torch.Tensor,
    value_TBGD: torch.Tensor,
    scale: float,
    spans: Spans | None = None,
) -> torch.Tensor:
    """softmax(scale * Q K^T, causal within each span) V as [S, B, G, R, D]; any strides.

    Without `spans` the queries are the last S of the T positions of one sequence. With them, they cover the queries
    in order without a gap. K and V are not repeated for their R query heads, and no full mask is made.

    On a GPU, spans given as tensors are one call without a word from the device, where the torch there has it for the
    dtype; else they are a call each.
    """
    if query_SBGRD.dim() != 5 or key_TBGD.shape != value_TBGD.shape or key_TBGD.dim() != 4:
        raise ValueError(
            f"query must be [S, B, G, R, D] and key, value [T, B, G, D], got {tuple(query_SBGRD.shape)}, "
            f"{tuple(key_TBGD.shape)}, {tuple(value_TBGD.shape)}"
        )
    if is_compiled("causal_attention", query_SBGRD, key_TBGD, value_TBGD):
        flat = _flat(_listed(spans, query_SBGRD.shape[0], key_TBGD.shape[0]))
        return blocked_causal_attention(query_SBGRD, key_TBGD, value_TBGD, scale, flat)[0]
    return torch_causal_attention(query_SBGRD, key_TBGD, value_TBGD, scale, spans)


def torch_causal_attention(
    query_SBGRD: torch.Tensor,
    key_TBGD: torch.Tensor,
    value_TBGD: torch.Tensor,
    scale: float,
    spans: Spans | None = None,
) -> torch.Tensor:
    """`causal_attention` by torch's own kernels, on any device."""
    if isinstance(spans, VariableLengthSpans) and takes_variable_lengths(query_SBGRD, key_TBGD, value_TBGD):
        return variable_length_attention(query_SBGRD, key_TBGD, value_TBGD, scale, spans)
    outputs = [
        _torch_attention(
            query_SBGRD[span.query_begin : span.query_end],
            key_TBGD[span.key_begin : span.key_end],
            value_TBGD[span.key_begin : span.key_end],
            scale,
        )
        for span in _listed(spans, query_SBGRD.shape[0], key_TBGD.shape[0])
    ]
    return outputs[0] if len(outputs) == 1 else torch.cat(outputs)


def packed_self_attention(packed_SBGJD: torch.Tensor, scale: float, spans: Spans | None = None) -> torch.Tensor:
    """`causal_attention` of a packed projection: the J heads of a group are R queries, one key, one value."""
    if packed_SBGJD.dim() != 5 or packed_SBGJD.shape[3] < 3:
        raise ValueError(f"packed must be [S, B, G, R + 2, D], got {tuple(packed_SBGJD.shape)}")
    if is_compiled("causal_attention", packed_SBGJD):
        flat = _flat(_listed(spans, packed_SBGJD.shape[0], packed_SBGJD.shape[0]))
        return packed_causal_attention(packed_SBGJD, scale, flat)[0]
    query, key_value = packed_SBGJD.split((packed_SBGJD.shape[3] - 2, 2), dim=3)
    key, value = key_value.unbind(3)
    return causal_attention(query, key, value, scale, spans)


def rotary_self_attention(
    packed: torch.Tensor,
    cos_PD: torch.Tensor,
    sin_PD: torch.Tensor,
    positions_N: torch.Tensor,
    shape_SBGJD: tuple[int, int, int, int, int],
    scale: float,
    spans: Spans | None = None,
) -> torch.Tensor:
    """`packed_self_attention` of queries and keys that `rope_` has turned; the content of `packed` is lost."""
    seq_length, batch, groups, heads, dim = shape_SBGJD
    shape_NGJD = (seq_length * batch, groups, heads, dim)
    if is_compiled("causal_attention", packed):
        rotated = rope_(packed, cos_PD, sin_PD, positions_N, heads - 1, shape_NGJD)
        return packed_self_attention(rotated.view(shape_SBGJD), scale, spans)
    parts = rope_unpack(packed, cos_PD, sin_PD, positions_N, shape_NGJD)
    query, key, value = (part.unflatten(0, (seq_length, batch)) for part in parts)
    return causal_attention(query, key, value, scale, spans)


def _listed(spans: Spans | None, queries: int, keys: int) -> list[Span]:
    if spans is None:
        return [Span(0, queries, 0, keys)]
    listed = spans.on_host if isinstance(spans, VariableLengthSpans) else spans
    assert listed and listed[0].query_begin == 0 and listed[-1].query_end == queries
    assert all(a.query_end == b.query_begin for a, b in pairwise(listed))
    assert all(s.query_end - s.query_begin <= s.key_end - s.key_begin for s in listed), "more queries than keys"
    return listed


def _flat(spans: list[Span]) -> list[int]:
    return [number for span in spans for number in span]


def _torch_attention(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scale: float) -> torch.Tensor:
    """torch's scaled_dot_product_attention, flash where the device has it; it reads strided K and V as they are."""
    queries, batch, groups, repeats, dim = query.shape
    heads = query.reshape(queries, batch, groups * repeats, dim).permute(1, 2, 0, 3)
    keys, values = key.permute(1, 2, 0, 3), value.permute(1, 2, 0, 3)
    square = queries == key.shape[0]
    context = F.scaled_dot_product_attention(
        heads,
        keys,
        values,
        attn_mask=None if square else causal_lower_right(queries, key.shape[0]),
        is_causal=square,
        scale=scale,
        enable_gqa=repeats > 1,
    )
    return context.permute(2, 0, 1, 3).reshape(queries, batch, groups, repeats, dim)
