"""Attention of runs of tokens that share stems of keys, without gradients: a stem is read once for all behind it.

What a token sees is split into parts, the stems and its own run; each gives a result and its log-sum-exp, by which the
parts are put together (as in arXiv 2402.05099, section 3.1).

Legend: N queries, T keys, G key/value heads, R query heads per group, D head dimension.
"""

from __future__ import annotations

import torch

from megatron_synE.kernels._native import address, code, launch
from megatron_synE.kernels.selection import is_compiled

# Bytes of the scores that exist at a time.
CHUNK_BYTES = 16 * 2**20


def partial_attention(
    query_NGRD: torch.Tensor, key_TGD: torch.Tensor, value_TGD: torch.Tensor, scale: float, *, is_causal: bool,
    plain: bool = False,
) -> tuple[torch.Tensor, torch.Tensor]:  # fmt: skip
    """softmax(scale * Q K^T) V as `[N, G, R, D]`, and the log-sum-exp of the scaled scores, fp32 `[N, G, R]`.

    Args:
        is_causal: the queries are the last N of the T positions; else each sees all keys.
        plain: by torch's own functions only.
    """
    num_queries, groups, repeats, dim = query_NGRD.shape
    num_keys = len(key_TGD)
    rows_GMD = query_NGRD.transpose(0, 1).reshape(groups, num_queries * repeats, dim)
    key_GDT, value_GTD = key_TGD.permute(1, 2, 0), value_TGD.transpose(0, 1)
    context_GMD = torch.empty_like(rows_GMD)
    logsumexp_GM = rows_GMD.new_empty(rows_GMD.shape[:2], dtype=torch.float32)
    together = max(1, CHUNK_BYTES // (groups * repeats * num_keys * query_NGRD.element_size()))
    for begin in range(0, num_queries, together):
        end = min(begin + together, num_queries)
        rows, visible = slice(begin * repeats, end * repeats), num_keys - (num_queries - end if is_causal else 0)
        scores_GMT = torch.bmm(rows_GMD[:, rows], key_GDT[:, :, :visible])
        # To the softmax, queries that all see the same are one query with many heads.
        shape = (end - begin, repeats) if is_causal else (1, (end - begin) * repeats)
        scores_GMT, logsumexp_GM[:, rows] = _softmax(scores_GMT, *shape, scale, plain)
        context_GMD[:, rows] = torch.bmm(scores_GMT, value_GTD[:, :visible])
    context_NGRD = context_GMD.unflatten(1, (num_queries, repeats)).transpose(0, 1)
    return context_NGRD, logsumexp_GM.unflatten(1, (num_queries, repeats)).transpose(0, 1)


def merge_(
    context_NGRD: torch.Tensor, logsumexp_NGR: torch.Tensor, other_NGRD: torch.Tensor, other_logsumexp_NGR: torch.Tensor
) -> None:
    """Make of the attention to some keys that to others as well, in place; `context_NGRD` is best fp32."""
    together_NGR = torch.logaddexp(logsumexp_NGR, other_logsumexp_NGR)
    context_NGRD *= (logsumexp_NGR - together_NGR).exp().unsqueeze(-1)
    context_NGRD += other_NGRD * (other_logsumexp_NGR - together_NGR).exp().unsqueeze(-1)
    logsumexp_NGR.copy_(together_NGR)


def _softmax(
    scores_GMT: torch.Tensor, num_queries: int, repeats: int, scale: float, plain: bool
) -> tuple[torch.Tensor, torch.Tensor]:
    """Probabilities `[G, M, T]` and log-sum-exp `[G, M]`, M being queries with their repeats; the scores are lost."""
    groups, num_rows, num_keys = scores_GMT.shape
    if not plain and scores_GMT.device.type == "cpu" and is_compiled("causal_attention", scores_GMT):
        logsumexp_GM = scores_GMT.new_empty(groups, num_rows, dtype=torch.float32)
        pointers, sizes = (address(scores_GMT), address(logsumexp_GM)), (groups * num_rows, num_keys)
        launch(
            "causal_softmax_forward",
            scores_GMT.device,
            code(scores_GMT),
            *pointers,
            *sizes,
            num_queries,
            repeats,
            scale,
        )
        return scores_GMT, logsumexp_GM
    scaled_GMT = scores_GMT.float() * scale
    if num_queries > 1:
        query_M = torch.arange(num_rows, device=scores_GMT.device) // repeats
        key_T = torch.arange(num_keys, device=scores_GMT.device)
        scaled_GMT.masked_fill_(key_T > query_M[:, None] + (num_keys - num_queries), float("-inf"))
    logsumexp_GM = scaled_GMT.logsumexp(-1)
    return (scaled_GMT - logsumexp_GM.unsqueeze(-1)).exp_().to(scores_GMT.dtype), logsumexp_GM
