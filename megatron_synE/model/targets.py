"""Probabilities of given tokens, from hidden states, over a vocabulary that may be split over a process group.

Legend: S sequence, B batch, H hidden, N = S * B tokens of this process's sequences, U of them that predict, M tokens
whose probability is asked for, V this process's part of the vocabulary, K processes that share it.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from megatron_synE.kernels import product

CHUNK_BYTES = 64 * 2**20
"""Of fp32 logits that exist at a time: enough rows for efficient products, and few beside a model's weights."""


@dataclass(frozen=True)
class Targets:
    """What `LlamaModel` is asked for in the place of labels: log-probabilities of some tokens instead of a loss."""

    places_U: torch.Tensor
    """int64 places in `[S, B]` hidden states (before sequence parallelism splits them) that predict a token, S first:
    place s * B + b."""
    rows_M: torch.Tensor
    """int64, ascending: for each token that is asked for, which of the U places predicts it."""
    tokens_M: torch.Tensor
    """int64 ids."""


def log_probabilities(
    hidden_UH: torch.Tensor, weight_VH: torch.Tensor, targets: Targets, num_columns: int,
    group: torch.distributed.ProcessGroup,
) -> torch.Tensor:  # fmt: skip
    """`[M, 2]` fp64, the same on all processes of `group`: ln p of each token, and the most probable token there.

    Logits are rounded to the weights' dtype, as in training; all after that is fp32 or better. Of equally probable
    tokens the first counts.

    Args:
        weight_VH: this process's rows of the output matrix; those from `num_columns` on are padding.
        group: over which the vocabulary is split, in rank order.
    """
    num_rows, size, rank = len(hidden_UH), group.size(), group.rank()
    if num_rows == 0:
        return torch.zeros(0, 2, dtype=torch.float64, device=hidden_UH.device)
    begin = rank * len(weight_VH)
    own_M = (targets.tokens_M >= begin) & (targets.tokens_M < begin + num_columns)
    columns_M = torch.where(own_M, targets.tokens_M - begin, 0)
    # Sums over the processes: each fills in what it knows. By row: log-sum-exp, largest logit, its token.
    of_rows_KU3 = torch.zeros(size, num_rows, 3, dtype=torch.float64, device=hidden_UH.device)
    logits_M = torch.zeros(len(columns_M), dtype=torch.float64, device=hidden_UH.device)
    if num_columns == 0:
        of_rows_KU3[rank, :, :2] = -torch.inf
    else:
        chunk_rows = max(1, CHUNK_BYTES // (4 * num_columns))
        firsts = range(0, num_rows, chunk_rows)
        bounds = torch.searchsorted(targets.rows_M, torch.tensor([*firsts, num_rows], device=columns_M.device)).tolist()
        for first, low, high in zip(firsts, bounds, bounds[1:], strict=False):
            rows, asked = slice(first, min(first + chunk_rows, num_rows)), slice(low, high)
            logits_UV = product(hidden_UH[rows], weight_VH.t())[:, :num_columns].float()
            logits_M[asked] = logits_UV[targets.rows_M[asked] - first, columns_M[asked]].double()
            largest_U, argmax_U = logits_UV.max(-1)
            of_rows_KU3[rank, rows, 0] = logits_UV.logsumexp(-1).double()
            of_rows_KU3[rank, rows, 1] = largest_U.double()
            of_rows_KU3[rank, rows, 2] = (argmax_U + begin).double()
        logits_M = torch.where(own_M, logits_M, 0.0)
    if size > 1:
        summed = torch.cat((of_rows_KU3.flatten(), logits_M))
        torch.distributed.all_reduce(summed, group=group)
        of_rows_KU3, logits_M = summed[: of_rows_KU3.numel()].view_as(of_rows_KU3), summed[of_rows_KU3.numel() :]
    logsumexp_U = of_rows_KU3[:, :, 0].logsumexp(0)
    best_U = of_rows_KU3[:, :, 1].argmax(0)
    most_probable_U = of_rows_KU3[:, :, 2].gather(0, best_U[None])[0]
    return torch.stack((logits_M - logsumexp_U[targets.rows_M], most_probable_U[targets.rows_M]), dim=1)
