"""Causal attention as two matrix products around a fused softmax, one block of queries at a time.

For CPUs: torch's own flash attention there runs far below the rate of its matrix products. The query heads of a group
are rows of one product with the group's keys, so K and V are never repeated. Scores exist one block at a time and are
computed again in the backward pass.

Queries are laid out block by block, each block `[Z, s * R, D]` without a gap (`_Block`), so that products read and
write them as they are; one copy brings them there from the projection's layout, and one brings the result back.

Legend: S queries, T keys, B batch, G key/value heads, R query heads per group, D head dimension, Z = B * G, s queries
of a block.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch

from megatron_synE.kernels._native import address, code, launch
from megatron_synE.kernels.op import kernel_op

# Queries of a block: enough rows for efficient products, few enough to leave out most of what the mask hides.
BLOCK_QUERIES = 128
# Bytes of one block's scores, so that the passes of the softmax stay in the cores' caches.
BLOCK_BYTES = 4 * 2**20


@kernel_op("syne::causal_attention")
def blocked_causal_attention(
    query_SBGRD: torch.Tensor, key_TBGD: torch.Tensor, value_TBGD: torch.Tensor, scale: float, spans: list[int]
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Context `[S, B, G, R, D]`, and what the backward pass reads: Q by blocks, K, V `[Z, T, D]`, log-sum-exp.

    `spans` are runs of four numbers: queries [begin, end) attend to keys [begin, end), last to last (`Span`).
    """
    context = torch.empty_like(query_SBGRD, memory_format=torch.contiguous_format)
    return context, *_forward(query_SBGRD, key_TBGD, value_TBGD, scale, spans, context)


@kernel_op("syne::causal_attention_backward")
def _backward_op(
    dcontext_SBGRD: torch.Tensor,
    query_blocks: torch.Tensor,
    key_ZTD: torch.Tensor,
    value_ZTD: torch.Tensor,
    logsumexp: torch.Tensor,
    scale: float,
    spans: list[int],
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    _, batch, groups, _, dim = dcontext_SBGRD.shape
    dquery = torch.empty_like(dcontext_SBGRD, memory_format=torch.contiguous_format)
    dkey, dvalue = (dquery.new_empty(key_ZTD.shape[1], batch, groups, dim) for _ in range(2))
    saved = (query_blocks, key_ZTD, value_ZTD, logsumexp)
    _backward_into((dquery, dkey, dvalue), dcontext_SBGRD, saved, scale, spans)
    return dquery, dkey, dvalue


@kernel_op("syne::packed_causal_attention")
def packed_causal_attention(
    packed_SBGJD: torch.Tensor, scale: float, spans: list[int]
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """`blocked_causal_attention` of a packed projection: the heads J of a group are R queries, one key, one value.

    Its gradient is packed too; taking the projection apart outside would put it together again with two copies.
    """
    query, key, value = _unpack(packed_SBGJD)
    context = query.new_empty(query.shape)
    return context, *_forward(query, key, value, scale, spans, context)


@kernel_op("syne::packed_causal_attention_backward")
def _packed_backward_op(
    dcontext_SBGRD: torch.Tensor,
    query_blocks: torch.Tensor,
    key_ZTD: torch.Tensor,
    value_ZTD: torch.Tensor,
    logsumexp: torch.Tensor,
    scale: float,
    spans: list[int],
) -> torch.Tensor:
    queries, batch, groups, repeats, dim = dcontext_SBGRD.shape
    dpacked = dcontext_SBGRD.new_empty(queries, batch, groups, repeats + 2, dim)
    saved = (query_blocks, key_ZTD, value_ZTD, logsumexp)
    _backward_into(_unpack(dpacked), dcontext_SBGRD, saved, scale, spans)
    return dpacked


def _unpack(packed_SBGJD: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Views of the queries, the key and the value of every group."""
    return packed_SBGJD[..., :-2, :], packed_SBGJD[..., -2, :], packed_SBGJD[..., -1, :]


@dataclass(frozen=True)
class _Block:
    """A run of queries of one span, in all heads."""

    queries: slice
    keys: slice
    """The keys that the last of these queries sees; the others see fewer."""
    rows: slice
    """The block's place among all Z * S * R rows."""
    head_chunks: list[slice]
    """How many of the Z heads are worked on at once."""

    def of(self, rows: torch.Tensor, num_heads: int) -> torch.Tensor:
        """This block's part of `[Z * S * R, ...]`, as a contiguous view `[Z, s * R, ...]`."""
        return rows[self.rows].unflatten(0, (num_heads, -1))


def _blocks(spans: list[int], num_heads: int, repeats: int, element_bytes: int) -> Iterator[_Block]:
    """All queries of all spans, block by block."""
    row = 0
    for query_begin, query_end, key_begin, key_end in zip(*[iter(spans)] * 4, strict=True):
        for begin in range(query_begin, query_end, BLOCK_QUERIES):
            end = min(begin + BLOCK_QUERIES, query_end)
            keys = slice(key_begin, key_end - (query_end - end))
            num_rows = num_heads * (end - begin) * repeats
            score_bytes = (end - begin) * repeats * (keys.stop - keys.start) * element_bytes
            together = max(1, BLOCK_BYTES // score_bytes)
            chunks = [slice(head, min(head + together, num_heads)) for head in range(0, num_heads, together)]
            yield _Block(slice(begin, end), keys, slice(row, row + num_rows), chunks)
            row += num_rows


def _forward(
    query_SBGRD: torch.Tensor,
    key_TBGD: torch.Tensor,
    value_TBGD: torch.Tensor,
    scale: float,
    spans: list[int],
    context_SBGRD: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Fills `context`; returns Q by blocks `[Z * S * R, D]`, K, V `[Z, T, D]`, log-sum-exp `[Z * S * R]` (fp32)."""
    queries, batch, groups, repeats, dim = query_SBGRD.shape
    heads = batch * groups
    key_ZTD, value_ZTD = _heads_first(key_TBGD), _heads_first(value_TBGD)
    query_rows = query_SBGRD.new_empty(heads * queries * repeats, dim)
    logsumexp = query_SBGRD.new_empty(len(query_rows), dtype=torch.float32)
    for block in _blocks(spans, heads, repeats, query_SBGRD.element_size()):
        query = block.of(query_rows, heads)
        _by_head(query, batch, repeats).copy_(_heads_last(query_SBGRD[block.queries]))
        block_logsumexp, output = block.of(logsumexp, heads), torch.empty_like(query)
        for chunk in block.head_chunks:
            key, value = (t[chunk, block.keys].contiguous() for t in (key_ZTD, value_ZTD))
            scores = torch.bmm(query[chunk], key.transpose(1, 2))
            _softmax("causal_softmax_forward", scores, None, block_logsumexp[chunk], repeats, scale)
            torch.bmm(scores, value, out=output[chunk])
        _heads_last(context_SBGRD[block.queries]).copy_(_by_head(output, batch, repeats))
    return query_rows, key_ZTD, value_ZTD, logsumexp


def _backward_into(
    gradients: tuple[torch.Tensor, torch.Tensor, torch.Tensor],
    dcontext_SBGRD: torch.Tensor,
    saved: tuple[torch.Tensor, ...],
    scale: float,
    spans: list[int],
) -> None:
    """Fills the gradients of query `[S, B, G, R, D]`, key and value `[T, B, G, D]`; they may have any strides."""
    dquery_SBGRD, dkey_TBGD, dvalue_TBGD = gradients
    query_rows, key_ZTD, value_ZTD, logsumexp = saved
    batch, repeats, heads = dcontext_SBGRD.shape[1], dcontext_SBGRD.shape[3], len(key_ZTD)
    # The blocks of queries add up in fp32.
    dkey_ZTD, dvalue_ZTD = (torch.zeros_like(key_ZTD, dtype=torch.float32) for _ in range(2))
    for block in _blocks(spans, heads, repeats, query_rows.element_size()):
        query, block_logsumexp = block.of(query_rows, heads), block.of(logsumexp, heads)
        dcontext, dquery = torch.empty_like(query), torch.empty_like(query)
        _by_head(dcontext, batch, repeats).copy_(_heads_last(dcontext_SBGRD[block.queries]))
        for chunk in block.head_chunks:
            key, value = (t[chunk, block.keys].contiguous() for t in (key_ZTD, value_ZTD))
            scores = torch.bmm(query[chunk], key.transpose(1, 2))
            dscores = torch.bmm(dcontext[chunk], value.transpose(1, 2))
            _softmax("causal_softmax_backward", scores, dscores, block_logsumexp[chunk], repeats, scale)
            torch.bmm(dscores, key, out=dquery[chunk])
            dkey_ZTD[chunk, block.keys] += torch.bmm(dscores.transpose(1, 2), query[chunk])
            dvalue_ZTD[chunk, block.keys] += torch.bmm(scores.transpose(1, 2), dcontext[chunk])
        _heads_last(dquery_SBGRD[block.queries]).copy_(_by_head(dquery, batch, repeats))
    for target_TBGD, source_ZTD in ((dkey_TBGD, dkey_ZTD), (dvalue_TBGD, dvalue_ZTD)):
        target_TBGD.permute(1, 2, 0, 3).copy_(source_ZTD.unflatten(0, (batch, -1)))


def _heads_first(tensor_TBGD: torch.Tensor) -> torch.Tensor:
    """A contiguous copy `[Z, T, D]`."""
    return tensor_TBGD.permute(1, 2, 0, 3).clone(memory_format=torch.contiguous_format).flatten(0, 1)


def _heads_last(queries_sBGRD: torch.Tensor) -> torch.Tensor:
    """The view `[B, G, s, R, D]`."""
    return queries_sBGRD.permute(1, 2, 0, 3, 4)


def _by_head(block: torch.Tensor, batch: int, repeats: int) -> torch.Tensor:
    """The view `[B, G, s, R, D]` of a block `[Z, s * R, D]`."""
    return block.unflatten(1, (-1, repeats)).unflatten(0, (batch, -1))


def _softmax(
    function: str,
    scores: torch.Tensor,
    dscores: torch.Tensor | None,
    logsumexp: torch.Tensor,
    repeats: int,
    scale: float,
) -> None:
    pointers = [address(t) for t in (scores, dscores, logsumexp) if t is not None]
    heads, rows, columns = scores.shape
    sizes = (heads * rows, columns, rows // repeats, repeats)
    launch(function, scores.device, code(scores), *pointers, *sizes, scale)


def _saved_shapes(query: torch.Tensor, key: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """Empty tensors like what `_forward` returns."""
    queries, batch, groups, repeats, dim = query.shape
    rows, keys = queries * batch * groups * repeats, (batch * groups, key.shape[0], dim)
    shapes = ((rows, dim), keys, keys)
    return *(query.new_empty(shape) for shape in shapes), query.new_empty(rows, dtype=torch.float32)


@blocked_causal_attention.register_fake
def _(query_SBGRD, key_TBGD, value_TBGD, scale, spans):
    return query_SBGRD.new_empty(query_SBGRD.shape), *_saved_shapes(query_SBGRD, key_TBGD)


@packed_causal_attention.register_fake
def _(packed_SBGJD, scale, spans):
    query, key, _ = _unpack(packed_SBGJD)
    return query.new_empty(query.shape), *_saved_shapes(query, key)


@_backward_op.register_fake
def _(dcontext, query_blocks, key_ZTD, value_ZTD, logsumexp, scale, spans):
    _, batch, groups, _, dim = dcontext.shape
    keys = (key_ZTD.shape[1], batch, groups, dim)
    return tuple(dcontext.new_empty(shape) for shape in (dcontext.shape, keys, keys))


@_packed_backward_op.register_fake
def _(dcontext, query_blocks, key_ZTD, value_ZTD, logsumexp, scale, spans):
    queries, batch, groups, repeats, dim = dcontext.shape
    return dcontext.new_empty(queries, batch, groups, repeats + 2, dim)


def _save(ctx, inputs, output) -> None:
    ctx.scale, ctx.spans = inputs[-2:]
    ctx.save_for_backward(*output[1:])
    ctx.mark_non_differentiable(*output[1:])


def _backward(ctx, dcontext, *_):
    return *_backward_op(dcontext, *ctx.saved_tensors, ctx.scale, ctx.spans), None, None


def _packed_backward(ctx, dcontext, *_):
    return _packed_backward_op(dcontext, *ctx.saved_tensors, ctx.scale, ctx.spans), None, None


blocked_causal_attention.register_autograd(_backward, setup_context=_save)
packed_causal_attention.register_autograd(_packed_backward, setup_context=_save)
