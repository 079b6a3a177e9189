"""Runs of tokens packed in one row that sees cached keys. N tokens, M answers."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import numpy as np
import torch

from megatron_synE.evaluation.llama.batching import Target
from megatron_synE.evaluation.llama.forward import ModelBatch
from megatron_synE.evaluation.llama.prefixes import IntArray, Run, stems_of
from megatron_synE.evaluation.llama.rows import make_targets
from megatron_synE.model.key_value_cache import Keys, KeyValueCache, cached_tokens


def packed_runs(
    runs: Sequence[Run], num_tokens: int, cache: KeyValueCache, max_length_tokens: int, device: torch.device
) -> tuple[ModelBatch, list[Target]]:
    """One row of `num_tokens`, and whose answers its M are. What is behind the runs is padding, in slot 0."""
    begins = np.cumsum([0, *(len(run.tokens) for run in runs)]).tolist()
    fill = np.zeros(num_tokens - begins[-1], dtype=np.int64)

    def on_device(array: IntArray) -> torch.Tensor:
        return torch.from_numpy(array).to(device)

    def packed(parts: list[IntArray]) -> torch.Tensor:
        return on_device(np.concatenate([*parts, fill]))

    asked = [
        (begin + target.position - run.start, target)
        for begin, run in zip(begins, runs, strict=False)
        for target in sorted(run.targets, key=lambda target: target.position)
    ]
    positions = packed([np.arange(run.start, run.start + len(run.tokens)) for run in runs])
    stems, own_slots = stems_of(runs)
    seen = [Keys(*bounds, on_device(slots)) for bounds, slots in zip(pairwise(begins), own_slots, strict=True)]
    if len(fill):
        seen.append(Keys(begins[-1], num_tokens, on_device(fill)))
    cached = cached_tokens(
        cache, positions, packed([run.slots for run in runs]),
        [Keys(begins[first], begins[last], on_device(slots)) for first, last, slots in stems], seen, max_length_tokens,
    )  # fmt: skip
    batch = ModelBatch(
        tokens_BS=packed([np.array(run.tokens, dtype=np.int64) for run in runs])[None],
        position_ids_BS=positions[None],
        targets=make_targets(asked, device),
        packed_seq_params=cached,
    )
    return batch, [target for _, target in asked]
