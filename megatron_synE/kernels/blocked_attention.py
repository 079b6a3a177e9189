"""Causal attention as two matrix products around a fused softmax, one block of queries at a time.

For CPUs: torch's own flash attention there runs far below the rate of its matrix products. The query heads of a group
are rows of one product with the group's keys, so K and V are never repeated. Scores exist one block at a time and are
computed again in the backward pass.

Legend: S queries, T keys, B batch, G key/value heads, R query heads per group, D head dimension, Z = B * G.
"""

from __future__ import annotations

import torch

from megatron_synE.kernels._native import address, code, launch

# Bytes of one block's scores, so that the passes of the softmax stay near the cores' caches.
BLOCK_BYTES = 24 * 2**20


@torch.library.custom_op("syne::causal_attention", mutates_args=())
def blocked_causal_attention(
    query_SBGRD: torch.Tensor, key_TBGD: torch.Tensor, value_TBGD: torch.Tensor, scale: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """Context [S, B, G, R, D] and log-sum-exp [Z, R, S]; the S queries are the last S of the T positions."""
    queries, batch, groups, repeats, _ = query_SBGRD.shape
    keys = key_TBGD.shape[0]
    context = torch.empty(query_SBGRD.shape, dtype=query_SBGRD.dtype, device=query_SBGRD.device)
    logsumexp = torch.empty(batch * groups, repeats, queries, dtype=torch.float32, device=query_SBGRD.device)
    key_ZTD, value_ZTD = _by_group(key_TBGD), _by_group(value_TBGD)
    for begin, end in _blocks(query_SBGRD, keys):
        visible = keys - queries + end
        query = _rows(query_SBGRD[begin:end])
        scores = torch.bmm(query, key_ZTD[:, :visible].transpose(1, 2))
        block_lse = torch.empty(scores.shape[:2], dtype=torch.float32, device=scores.device)
        _softmax("causal_softmax_forward", scores, None, block_lse, end - begin, scale)
        logsumexp[:, :, begin:end] = block_lse.view(-1, repeats, end - begin)
        output = torch.bmm(scores, value_ZTD[:, :visible])
        context[begin:end] = _unrows(output, query_SBGRD[begin:end].shape)
    return context, logsumexp


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
    key_ZTD, value_ZTD = _by_group(key_TBGD), _by_group(value_TBGD)
    dquery = torch.empty(query_SBGRD.shape, dtype=query_SBGRD.dtype, device=query_SBGRD.device)
    blocks = _blocks(query_SBGRD, keys)
    dkey: torch.Tensor | None = None
    dvalue: torch.Tensor | None = None
    for begin, end in reversed(blocks):
        visible = keys - queries + end
        query, dcontext = _rows(query_SBGRD[begin:end]), _rows(dcontext_SBGRD[begin:end])
        scores = torch.bmm(query, key_ZTD[:, :visible].transpose(1, 2))
        dscores = torch.bmm(dcontext, value_ZTD[:, :visible].transpose(1, 2))
        block_lse = logsumexp[:, :, begin:end].contiguous()
        _softmax("causal_softmax_backward", scores, dscores, block_lse, end - begin, scale)
        dquery[begin:end] = _unrows(torch.bmm(dscores, key_ZTD[:, :visible]), query_SBGRD[begin:end].shape)
        block_dkey = torch.bmm(dscores.transpose(1, 2), query)
        block_dvalue = torch.bmm(scores.transpose(1, 2), dcontext)
        if dkey is None or dvalue is None:
            # The last block sees every key. Several blocks add up in fp32; a single one is rounded once.
            wide = torch.float32 if len(blocks) > 1 else block_dkey.dtype
            dkey, dvalue = block_dkey.to(wide), block_dvalue.to(wide)
        else:
            dkey[:, :visible] += block_dkey.float()
            dvalue[:, :visible] += block_dvalue.float()
    if dkey is None or dvalue is None:
        return dquery, torch.zeros_like(key_TBGD), torch.zeros_like(value_TBGD)
    shape = key_TBGD.shape
    return dquery, _ungroup(dkey.to(key_TBGD.dtype), shape), _ungroup(dvalue.to(key_TBGD.dtype), shape)


def _blocks(query_SBGRD: torch.Tensor, keys: int) -> list[tuple[int, int]]:
    queries, batch, groups, repeats, _ = query_SBGRD.shape
    row_bytes = max(1, batch * groups * repeats * keys * query_SBGRD.element_size())
    count = max(1, -(-queries * row_bytes // BLOCK_BYTES))
    size = max(16, -(-queries // count))
    return [(begin, min(begin + size, queries)) for begin in range(0, queries, size)]


def _by_group(tensor_TBGD: torch.Tensor) -> torch.Tensor:
    """[T, B, G, D] -> contiguous [Z, T, D]."""
    keys, _, _, dim = tensor_TBGD.shape
    return tensor_TBGD.permute(1, 2, 0, 3).reshape(-1, keys, dim)


def _ungroup(tensor_ZTD: torch.Tensor, shape: torch.Size) -> torch.Tensor:
    keys, batch, groups, dim = shape
    return tensor_ZTD.view(batch, groups, keys, dim).permute(2, 0, 1, 3).contiguous()


def _rows(tensor_SBGRD: torch.Tensor) -> torch.Tensor:
    """[S, B, G, R, D] -> contiguous [Z, R * S, D]."""
    queries, batch, groups, repeats, dim = tensor_SBGRD.shape
    return tensor_SBGRD.permute(1, 2, 3, 0, 4).reshape(batch * groups, repeats * queries, dim)


def _unrows(tensor_ZQD: torch.Tensor, shape: torch.Size) -> torch.Tensor:
    queries, batch, groups, repeats, dim = shape
    return tensor_ZQD.view(batch, groups, repeats, queries, dim).permute(3, 0, 1, 2, 4)


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
