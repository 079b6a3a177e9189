"""Causal attention as two matrix products around a fused softmax, one block of queries at a time.

For CPUs: torch's own flash attention there runs far below the rate of its matrix products. The query heads of a group
are rows of one product with the group's keys, so K and V are never repeated. Scores exist one block at a time and are
computed again in the backward pass.

Legend: S queries, T keys, B batch, G key/value heads, R query heads per group, D head dimension, Z = B * G.
"""

from __future__ import annotations

import torch

from megatron_synE.kernels._native import address, code, launch

# Queries of a block: enough rows for efficient products, few enough to leave out most of what the mask hides.
BLOCK_QUERIES = 128
# Bytes of one block's scores, so that the passes of the softmax stay in the cores' caches.
BLOCK_BYTES = 4 * 2**20


@torch.library.custom_op("syne::causal_attention", mutates_args=())
def blocked_causal_attention(
    query_SBGRD: torch.Tensor, key_TBGD: torch.Tensor, value_TBGD: torch.Tensor, scale: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """Context [S, B, G, R, D] and log-sum-exp [Z, R, S]; the S queries are the last S of the T positions."""
    queries, batch, groups, repeats, _ = query_SBGRD.shape
    keys = key_TBGD.shape[0]
    query_ZRSD, key_ZTD, value_ZTD = _heads_first(query_SBGRD), _heads_first(key_TBGD), _heads_first(value_TBGD)
    context_ZRSD = query_SBGRD.new_empty(query_ZRSD.shape)
    logsumexp = query_SBGRD.new_empty(batch * groups, repeats, queries, dtype=torch.float32)
    for z, block in _blocks(query_ZRSD, keys):
        visible = keys - queries + block.stop
        query = _rows(query_ZRSD[z, :, block])
        scores = torch.bmm(query, key_ZTD[z, :visible].transpose(1, 2))
        block_lse = scores.new_empty(scores.shape[:2], dtype=torch.float32)
        _softmax("causal_softmax_forward", scores, None, block_lse, block.stop - block.start, scale)
        logsumexp[z, :, block] = block_lse.view(logsumexp[z, :, block].shape)
        output = torch.bmm(scores, value_ZTD[z, :visible])
        context_ZRSD[z, :, block] = output.view(context_ZRSD[z, :, block].shape)
    return _heads_last(context_ZRSD, query_SBGRD.shape), logsumexp


@torch.library.custom_op("syne::causal_attention_backward", mutates_args=())
def _backward_op(
    dcontext_SBGRD: torch.Tensor,
    query_SBGRD: torch.Tensor,
    key_TBGD: torch.Tensor,
    value_TBGD: torch.Tensor,
    logsumexp: torch.Tensor,
    scale: float,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    queries, keys = query_SBGRD.shape[0], key_TBGD.shape[0]
    query_ZRSD, dcontext_ZRSD = _heads_first(query_SBGRD), _heads_first(dcontext_SBGRD)
    key_ZTD, value_ZTD = _heads_first(key_TBGD), _heads_first(value_TBGD)
    dquery_ZRSD = query_SBGRD.new_empty(query_ZRSD.shape)
    # The blocks of queries add up in fp32.
    dkey_ZTD, dvalue_ZTD = (torch.zeros_like(key_ZTD, dtype=torch.float32) for _ in range(2))
    for z, block in _blocks(query_ZRSD, keys):
        visible = keys - queries + block.stop
        query, dcontext = _rows(query_ZRSD[z, :, block]), _rows(dcontext_ZRSD[z, :, block])
        scores = torch.bmm(query, key_ZTD[z, :visible].transpose(1, 2))
        dscores = torch.bmm(dcontext, value_ZTD[z, :visible].transpose(1, 2))
        block_lse = logsumexp[z, :, block].contiguous()
        _softmax("causal_softmax_backward", scores, dscores, block_lse, block.stop - block.start, scale)
        dquery = torch.bmm(dscores, key_ZTD[z, :visible])
        dquery_ZRSD[z, :, block] = dquery.view(dquery_ZRSD[z, :, block].shape)
        dkey_ZTD[z, :visible] += torch.bmm(dscores.transpose(1, 2), query).float()
        dvalue_ZTD[z, :visible] += torch.bmm(scores.transpose(1, 2), dcontext).float()
    dtype, shape = key_TBGD.dtype, key_TBGD.shape
    dkey, dvalue = (_heads_last(t.to(dtype), shape) for t in (dkey_ZTD, dvalue_ZTD))
    return _heads_last(dquery_ZRSD, query_SBGRD.shape), dkey, dvalue


def _blocks(query_ZRSD: torch.Tensor, keys: int) -> list[tuple[slice, slice]]:
    """(slice of Z, slice of S) of each block: all heads at once while their scores are small."""
    heads, repeats, queries, _ = query_ZRSD.shape
    size = min(BLOCK_QUERIES, max(1, queries))
    together = max(1, BLOCK_BYTES // max(1, repeats * size * keys * query_ZRSD.element_size()))
    return [
        (slice(z, min(z + together, heads)), slice(begin, min(begin + size, queries)))
        for z in range(0, heads, together)
        for begin in range(0, queries, size)
    ]


def _heads_first(tensor: torch.Tensor) -> torch.Tensor:
    """[S, B, G, R, D] -> contiguous [Z, R, S, D]; [T, B, G, D] -> contiguous [Z, T, D]."""
    order = (1, 2, 3, 0, 4) if tensor.dim() == 5 else (1, 2, 0, 3)
    return tensor.permute(order).contiguous().flatten(0, 1)


def _heads_last(tensor: torch.Tensor, shape: torch.Size) -> torch.Tensor:
    """The inverse of `_heads_first`, to `shape`, contiguous."""
    by_batch = tensor.unflatten(0, (shape[1], shape[2]))
    order = (3, 0, 1, 2, 4) if len(shape) == 5 else (2, 0, 1, 3)
    return by_batch.permute(order).contiguous()


def _rows(tensor_ZRSD: torch.Tensor) -> torch.Tensor:
    """[Z, R, S, D] -> contiguous [Z, R * S, D]."""
    return tensor_ZRSD.flatten(1, 2).contiguous()


def _softmax(
    function: str,
    scores: torch.Tensor,
    dscores: torch.Tensor | None,
    logsumexp: torch.Tensor,
    queries: int,
    scale: float,
) -> None:
    pointers = [address(t) for t in (scores, dscores, logsumexp) if t is not None]
    rows = scores.shape[0] * scores.shape[1]
    launch(function, scores.device, code(scores), *pointers, rows, scores.shape[2], queries, scale)


@blocked_causal_attention.register_fake
def _(query_SBGRD, key_TBGD, value_TBGD, scale):
    queries, batch, groups, repeats, _ = query_SBGRD.shape
    logsumexp = query_SBGRD.new_empty(batch * groups, repeats, queries, dtype=torch.float32)
    return query_SBGRD.new_empty(query_SBGRD.shape), logsumexp


@_backward_op.register_fake
def _(dcontext, query_SBGRD, key_TBGD, value_TBGD, logsumexp, scale):
    shapes = (query_SBGRD.shape, key_TBGD.shape, value_TBGD.shape)
    return tuple(query_SBGRD.new_empty(shape) for shape in shapes)


def _save(ctx, inputs, output) -> None:
    query, key, value, ctx.scale = inputs
    ctx.save_for_backward(query, key, value, output[1])
    ctx.mark_non_differentiable(output[1])


def _backward(ctx, dcontext, _):
    dquery, dkey, dvalue = _backward_op(dcontext, *ctx.saved_tensors, ctx.scale)
    return dquery, dkey, dvalue, None


blocked_causal_attention.register_autograd(_backward, setup_context=_save)
