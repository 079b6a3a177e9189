"""Sequences that begin alike → runs of tokens that are computed once. No torch.

The sequences form a tree: a segment is a run of tokens behind its parent, the run before it, and all sequences that go
through it share it. Segments are worked through parent first, the longest branch first, so that few keys and values
have to be kept at a time: those on the way to the present branch.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

import numpy as np
import numpy.typing as npt

from megatron_synE.evaluation.llama.batching import BatchLimits, Target, TokenSequence

FEWEST_SAVED_TOKENS = 16
"""A shared run costs a call of attention more; so many tokens less have to be computed for it."""
KEYS_PER_TOKEN = 16
"""How many more keys than tokens a batch may see: keys of a shared beginning are copied for each run behind it."""

IntArray = npt.NDArray[np.int64]
NO_SLOTS = np.empty(0, dtype=np.int64)


@dataclass(frozen=True)
class Run:
    """Tokens that go through the model one after the other, and the keys that they see."""

    tokens: tuple[int, ...]
    start: int
    """Position of the first token."""
    slots: IntArray
    """Where their keys are kept."""
    ancestors: list[Segment]
    """What other runs may see, too, from the beginning of the sequence on."""
    own_slots: IntArray
    """Of the keys behind those; theirs are the last."""
    targets: list[Target]
    """Asked of these tokens."""


@dataclass(eq=False)
class Segment:
    """A run of tokens behind its parent's."""

    tokens: tuple[int, ...]
    start: int
    """Position of the first token."""
    parent: Segment | None = None
    targets: list[Target] = field(default_factory=list)
    """Asked of these tokens."""
    num_children: int = 0
    """That are not computed yet, or still needed."""
    slots: IntArray = field(default_factory=lambda: NO_SLOTS)
    """Where the keys of these tokens are kept."""

    @property
    def end(self) -> int:
        """Keys that its last token sees."""
        return self.start + len(self.tokens)

    def ancestors(self) -> list[Segment]:
        """From the beginning of the sequence on."""
        chain: list[Segment] = []
        at = self.parent
        while at is not None:
            chain.append(at)
            at = at.parent
        return chain[::-1]

    def run(self) -> Run:
        """It, once it has slots, as its parents have."""
        return Run(self.tokens, self.start, self.slots, self.ancestors(), self.slots, self.targets)


class SlotPool:
    """Numbers of free slots, the lowest first; slot 0 is for what nobody sees."""

    def __init__(self) -> None:
        self.num_slots = 1
        self._free: list[int] = []

    def take(self, count: int) -> IntArray:
        """As many slots that nobody has."""
        reused = [heapq.heappop(self._free) for _ in range(min(count, len(self._free)))]
        fresh = range(self.num_slots, self.num_slots + count - len(reused))
        self.num_slots = fresh.stop
        return np.array([*reused, *fresh], dtype=np.int64)

    def give_back(self, slots: IntArray) -> None:
        """Nobody sees them any more."""
        for slot in slots.tolist():
            heapq.heappush(self._free, slot)

    def release(self, segment: Segment) -> None:
        """Nothing will stand behind the segment any more: its slots are free, and those of parents that are through."""
        at: Segment | None = segment
        while at is not None and at.num_children == 0:
            self.give_back(at.slots)
            at = at.parent
            if at is not None:
                at.num_children -= 1


def share_of_rank(sequences: Iterable[TokenSequence], rank: int, size: int) -> list[TokenSequence]:
    """The part of one of `size` workers: neighbours in the dictionary, with about as many tokens to compute each."""
    ordered = _in_dictionary_order(sequences)
    if size == 1 or not ordered:
        return ordered
    lengths = np.array([len(sequence.tokens) for sequence in ordered], dtype=np.int64)
    done = np.cumsum(lengths - _shared_with_previous(ordered))
    low, high = np.searchsorted(done, [done[-1] * rank // size, done[-1] * (rank + 1) // size], side="right")
    return ordered[low : high if rank < size - 1 else len(ordered)]


def segments_of(sequences: Iterable[TokenSequence], longest: int) -> list[Segment]:
    """All segments, parents first and none of more than `longest` tokens."""
    ordered = _in_dictionary_order(sequences)
    shared = _shared_with_previous(ordered)
    lengths = np.array([len(sequence.tokens) for sequence in ordered], dtype=np.int64)
    segments: list[Segment] = []

    def add(sequence: TokenSequence, parent: Segment | None, end: int) -> Segment | None:
        """The segments that lead from `parent` to a position; the last of them."""
        start = 0 if parent is None else parent.end
        for begin in range(start, end, longest):
            tokens = sequence.tokens[begin : min(begin + longest, end)]
            segment = Segment(tokens, begin, parent)
            if parent is not None:
                parent.num_children += 1
            segments.append(segment)
            parent = segment
        return parent

    todo: list[tuple[int, int, Segment | None]] = [(0, len(ordered), None)] if ordered else []
    while todo:
        first, last, parent = todo.pop()
        if last - first == 1:
            leaf = add(ordered[first], parent, int(lengths[first]))
            _hand_out(ordered[first].targets, leaf)
            continue
        inner = shared[first + 1 : last]
        common = int(inner.min())
        bounds = [first, *(first + 1 + np.flatnonzero(inner == common)).tolist(), last]
        saved_tokens = (common - (parent.end if parent is not None else 0)) * (len(bounds) - 2)
        if saved_tokens >= FEWEST_SAVED_TOKENS:
            parent = add(ordered[first], parent, common)
        branches = sorted(pairwise(bounds), key=lambda pair: int(lengths[slice(*pair)].max()))
        todo += [(low, high, parent) for low, high in branches]  # the longest is taken first
    return segments


def _in_dictionary_order(sequences: Iterable[TokenSequence]) -> list[TokenSequence]:
    # Bytes of big-endian numbers compare as the numbers do, and faster.
    return sorted(sequences, key=lambda sequence: np.array(sequence.tokens, dtype=">u4").tobytes())


def _shared_with_previous(ordered: Sequence[TokenSequence]) -> IntArray:
    """How many first tokens each sequence has in common with the one before; 0 for the first."""
    shared = np.zeros(len(ordered), dtype=np.int64)
    arrays = [np.array(sequence.tokens, dtype=np.int64) for sequence in ordered]
    for number in range(1, len(arrays)):
        size = min(len(arrays[number - 1]), len(arrays[number]))
        differ = arrays[number - 1][:size] != arrays[number][:size]
        shared[number] = differ.argmax() if differ.any() else size
    return shared


def _hand_out(targets: Iterable[Target], last: Segment | None) -> None:
    """Give each target to the segment that has its position."""
    for target in targets:
        segment = last
        while segment is not None and segment.start > target.position:
            segment = segment.parent
        assert segment is not None and target.position < segment.end
        segment.targets.append(target)


def segment_batches(segments: Iterable[Segment], limits: BatchLimits) -> tuple[list[list[Segment]], int]:
    """Runs of segments that fit the limits, in their order, each with its slots; and how many slots all need."""
    pool = SlotPool()
    batches: list[list[Segment]] = []
    batch: list[Segment] = []
    num_tokens = num_keys = num_leaves = 0
    for segment in segments:
        is_leaf = segment.num_children == 0
        too_many_tokens = num_tokens + len(segment.tokens) > limits.tokens
        too_many_keys = num_keys + segment.end > KEYS_PER_TOKEN * limits.tokens
        too_many_leaves = limits.sequences is not None and num_leaves + is_leaf > limits.sequences
        if batch and (too_many_tokens or too_many_keys or too_many_leaves):
            batches.append(batch)
            _release_leaves(pool, batch)
            batch, num_tokens, num_keys, num_leaves = [], 0, 0, 0
        segment.slots = pool.take(len(segment.tokens))
        batch.append(segment)
        num_tokens += len(segment.tokens)
        num_keys += segment.end
        num_leaves += is_leaf
    return [*batches, batch] if batch else batches, pool.num_slots


def _release_leaves(pool: SlotPool, batch: Sequence[Segment]) -> None:
    for segment in [segment for segment in batch if segment.num_children == 0]:
        pool.release(segment)


def stems_of(runs: Sequence[Run]) -> tuple[list[tuple[int, int, IntArray]], list[IntArray]]:
    """What neighbouring runs see in common, for all of them; and what each run sees beside that.

    Returns:
        Stems: numbers [first, last) of the runs, and the slots that they all see, the earlier in the sequence first.
        Slots of each run.
    """
    stems: dict[tuple[int, int], list[IntArray]] = {}
    own: list[list[IntArray]] = [[run.own_slots] for run in runs]
    depths = [len(run.ancestors) for run in runs]
    for depth in range(max(depths, default=0)):
        first = 0
        for number in range(1, len(runs) + 1):
            same = number < len(runs) and depth < min(depths[first], depths[number])
            if same and runs[number].ancestors[depth] is runs[first].ancestors[depth]:
                continue
            if depth < depths[first]:
                slots = runs[first].ancestors[depth].slots
                if number - first > 1:
                    stems.setdefault((first, number), []).append(slots)
                else:
                    own[first].insert(-1, slots)
            first = number
    return [(*range_, np.concatenate(parts)) for range_, parts in stems.items()], [np.concatenate(p) for p in own]
