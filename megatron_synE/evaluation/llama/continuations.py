"""Prompts that one replica of the model continues, several at once, a token each at a time. M answers of a batch."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
import torch
from megatron.core import parallel_state

from megatron_synE.evaluation.llama.batching import BatchLimits, Target, TokenSequence
from megatron_synE.evaluation.llama.forward import Found, padded_length, run_asked
from megatron_synE.evaluation.llama.packed import packed_runs
from megatron_synE.evaluation.llama.prefixes import IntArray, Run, Segment, SlotPool, segments_of
from megatron_synE.evaluation.llama.rows import padded_rows
from megatron_synE.model.key_value_cache import KeyValueCache

KEYS_PER_TOKEN = 4
"""How many times a batch's tokens the continuations that are under way may have together, when they are complete."""


@dataclass(eq=False)
class Continuation:
    """A prompt and what was made of it so far."""

    number: int
    """Of its request."""
    prompt: tuple[int, ...]
    max_new_tokens: int
    new_tokens: list[int] = field(default_factory=list)

    @property
    def most_tokens(self) -> int:
        """When it is complete."""
        return len(self.prompt) + self.max_new_tokens

    def asks(self, position: int) -> Target:
        """For the token behind this position; which is likeliest is told with any that is asked for."""
        return Target(position, 0, self.number)


class Writer(Protocol):
    """One way to find next tokens."""

    def next_tokens(self) -> Found:
        """The next token of some of the continuations under way; called by all processes of the replica."""
        ...

    def end(self, one: Continuation) -> None:
        """It is complete; so may be one of another replica."""
        ...


class WholeSequences:
    """Reads everything before a token again for each: any model can, but it takes long."""

    def __init__(
        self, chunks: Sequence[torch.nn.Module], own: Sequence[Continuation], limits: BatchLimits, device: torch.device
    ) -> None:
        self._chunks, self._limits, self._device = chunks, limits, device
        self._waiting = deque(sorted(own, key=lambda one: -len(one.prompt)))
        self._running: list[Continuation] = []

    def next_tokens(self) -> Found:
        """Of all under way."""
        while self._waiting and self._has_room(self._waiting[0]):
            self._running.append(self._waiting.popleft())
        if not self._running:
            return []
        sequences = []
        for one in self._running:
            tokens = (*one.prompt, *one.new_tokens)
            sequences.append(TokenSequence(tokens, [one.asks(len(tokens) - 1)]))
        stages = parallel_state.get_pipeline_model_parallel_world_size()
        num_rows = -(-len(sequences) // stages)
        num_tokens = padded_length(self._chunks, max(len(sequence.tokens) for sequence in sequences))
        return run_asked(
            self._chunks,
            [
                padded_rows(sequences[stage * num_rows :][:num_rows], num_rows, num_tokens, self._device)
                for stage in range(stages)
            ],
        )

    def end(self, one: Continuation) -> None:
        """Make room."""
        self._running = [other for other in self._running if other is not one]

    def _has_room(self, another: Continuation) -> bool:
        if not self._running:
            return True
        together = [*self._running, another]
        if self._limits.sequences is not None and len(together) > self._limits.sequences:
            return False
        return max(one.most_tokens for one in together) * len(together) <= self._limits.tokens


@dataclass(eq=False)
class _Tip:
    """Where a continuation under way stands in the cache."""

    segment: Segment
    """The last of the prompt."""
    slots: IntArray
    """Room for those of all new tokens."""
    num_slots: int = 0
    """How many of them are taken."""


class CachedSequences:
    """Reads each token once, and beginnings that prompts have in common once for all of them.

    New prompts are read beside the next tokens of those under way.
    """

    def __init__(
        self, chunks: Sequence[torch.nn.Module], own: Sequence[Continuation], limits: BatchLimits,
        max_length_tokens: int, device: torch.device,
    ) -> None:  # fmt: skip
        self._chunks, self._limits, self._device = chunks, limits, device
        self._max_length_tokens = max_length_tokens
        self._pool, self._cache = SlotPool(), KeyValueCache(0)
        self._by_number = {one.number: one for one in own}
        by_prompt: dict[tuple[int, ...], TokenSequence] = {}
        for one in own:
            sequence = by_prompt.setdefault(one.prompt, TokenSequence(one.prompt))
            sequence.targets.append(one.asks(len(one.prompt) - 1))
        self._waiting = deque(segments_of(by_prompt.values(), limits.tokens))
        for segment in self._waiting:
            segment.num_children += len(segment.targets)  # what is written behind it needs its keys
        self._tips: dict[Continuation, _Tip] = {}

    def next_tokens(self) -> Found:
        """Of all under way, and the first of new ones."""
        runs = [self._go_on(one, tip) for one, tip in self._tips.items()]
        num_tokens = len(runs)
        while self._waiting and self._has_room(self._waiting[0], num_tokens):
            segment = self._waiting.popleft()
            segment.slots = self._pool.take(len(segment.tokens))
            runs.append(segment.run())
            num_tokens += len(segment.tokens)
            for target in segment.targets:
                one = self._by_number[target.request]
                self._tips[one] = _Tip(segment, np.zeros(one.max_new_tokens, dtype=np.int64))
        if not runs:
            return []
        if self._pool.num_slots > self._cache.num_slots:
            self._cache.grow(self._pool.num_slots * 3 // 2)
        parts = _parts(runs, parallel_state.get_pipeline_model_parallel_world_size())
        longest = padded_length(self._chunks, max(sum(len(run.tokens) for run in part) for part in parts))
        return run_asked(
            self._chunks,
            [packed_runs(part, longest, self._cache, self._max_length_tokens, self._device) for part in parts],
        )

    def end(self, one: Continuation) -> None:
        """Give its slots back."""
        tip = self._tips.pop(one, None)
        if tip is not None:
            self._pool.give_back(tip.slots[: tip.num_slots])
            tip.segment.num_children -= 1
            self._pool.release(tip.segment)

    def _go_on(self, one: Continuation, tip: _Tip) -> Run:
        """Its newest token, which is read to find the next."""
        position = len(one.prompt) + len(one.new_tokens) - 1
        slots = self._pool.take(1)
        tip.slots[tip.num_slots] = slots[0]
        tip.num_slots += 1
        ancestors = [*tip.segment.ancestors(), tip.segment]
        own_slots = tip.slots[: tip.num_slots]
        return Run((one.new_tokens[-1],), position, slots, ancestors, own_slots, [one.asks(position)])

    def _has_room(self, segment: Segment, num_tokens: int) -> bool:
        if num_tokens and num_tokens + len(segment.tokens) > self._limits.tokens:
            return False
        new = [self._by_number[target.request] for target in segment.targets]
        if not self._tips or not new:
            return True
        if self._limits.sequences is not None and len(self._tips) + len(new) > self._limits.sequences:
            return False
        most_tokens = sum(one.most_tokens for one in (*self._tips, *new))
        return most_tokens <= KEYS_PER_TOKEN * self._limits.tokens


def _parts(runs: Sequence[Run], count: int) -> list[list[Run]]:
    """As many neighbouring parts of about as many tokens; some may be empty."""
    ends = np.cumsum([len(run.tokens) for run in runs])
    bounds = np.searchsorted(ends, [ends[-1] * n / count for n in range(1, count)], side="right").tolist()
    return [list(runs[low:high]) for low, high in zip([0, *bounds], [*bounds, len(runs)], strict=True)]
