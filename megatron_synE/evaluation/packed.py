"""Runs of tokens packed in one row that sees cached keys. N tokens, T keys that they see, M answers."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from megatron_synE.evaluation.batching import Target
from megatron_synE.evaluation.forward import ModelBatch
from megatron_synE.evaluation.prefixes import Run
from megatron_synE.evaluation.rows import make_targets
from megatron_synE.model.key_value_cache import KeyValueCache, cached_tokens


def packed_runs(
    runs: Sequence[Run], num_tokens: int, cache: KeyValueCache, max_length_tokens: int, device: torch.device
) -> tuple[ModelBatch, list[Target]]:
    """One row of `num_tokens`, and whose answers its M are. What is behind the runs is padding, in slot 0."""
    num_queries = [len(run.tokens) for run in runs]
    begins = np.cumsum([0, *num_queries])
    padding = num_tokens - int(begins[-1])
    fill = np.zeros(padding, dtype=np.int64)
    tokens_N = [np.array(run.tokens, dtype=np.int64) for run in runs]
    positions_N = [np.arange(run.start, run.start + len(run.tokens)) for run in runs]
    slots_N = [run.slots for run in runs]
    key_slots_T = [run.key_slots for run in runs]
    num_keys = [len(slots) for slots in key_slots_T]
    if padding:
        num_queries, num_keys = [*num_queries, padding], [*num_keys, padding]

    def packed(parts: list[np.ndarray]) -> torch.Tensor:
        return torch.from_numpy(np.concatenate([*parts, fill])).to(device)

    asked = [
        (int(begin) + target.position - run.start, target)
        for begin, run in zip(begins, runs, strict=False)
        for target in sorted(run.targets, key=lambda target: target.position)
    ]
    positions = packed(positions_N)
    seen = cached_tokens(
        cache, positions, packed(slots_N), packed(key_slots_T), num_queries, num_keys, max_length_tokens
    )
    batch = ModelBatch(
        tokens_BS=packed(tokens_N)[None], position_ids_BS=positions[None], targets=make_targets(asked, device),
        packed_seq_params=seen,
    )  # fmt: skip
    return batch, [target for _, target in asked]
