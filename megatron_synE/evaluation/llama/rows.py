"""Whole sequences as padded rows: what any model takes as it trains. B rows, S tokens of this process, M answers."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from megatron.core import parallel_state

from megatron_synE.evaluation.llama.batching import Target, TokenSequence
from megatron_synE.evaluation.llama.forward import ModelBatch
from megatron_synE.model.sequence_layout import chunk_begins
from megatron_synE.model.targets import Targets


def padded_rows(
    sequences: Sequence[TokenSequence], num_rows: int, num_tokens: int, device: torch.device
) -> tuple[ModelBatch, list[Target]]:
    """This process's part of `num_rows` rows of `num_tokens`, and whose answers its M are.

    Padding stands behind the tokens, where causal attention does not see it.
    """
    size, rank = parallel_state.get_context_parallel_world_size(), parallel_state.get_context_parallel_rank()
    begins = chunk_begins(num_tokens // size, rank, size)
    chunk = num_tokens // size // len(begins)
    positions_S = np.concatenate([np.arange(begin, begin + chunk) for begin in begins])
    tokens_BS = np.zeros((num_rows, num_tokens), dtype=np.int64)
    asked: list[tuple[int, Target]] = []
    for row, sequence in enumerate(sequences):
        tokens_BS[row, : len(sequence.tokens)] = sequence.tokens
        for target in sequence.targets:
            part = next((n for n, begin in enumerate(begins) if begin <= target.position < begin + chunk), None)
            if part is not None:
                place = target.position - begins[part] + part * chunk
                asked.append((place * num_rows + row, target))
    asked.sort(key=lambda pair: pair[0])
    batch = ModelBatch(
        tokens_BS=torch.from_numpy(tokens_BS[:, positions_S]).to(device),
        position_ids_BS=torch.from_numpy(np.tile(positions_S, (num_rows, 1))).to(device),
        targets=make_targets(asked, device),
    )
    return batch, [target for _, target in asked]


def make_targets(asked: Sequence[tuple[int, Target]], device: torch.device) -> Targets:
    """Tokens that are asked for, each with the place that predicts it, by place."""
    places_U, rows_M = np.unique(np.array([place for place, _ in asked], dtype=np.int64), return_inverse=True)
    tokens_M = np.array([target.token for _, target in asked], dtype=np.int64)
    return Targets(*(torch.from_numpy(array).to(device) for array in (places_U, rows_M, tokens_M)))
