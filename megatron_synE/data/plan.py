"""From stages, weights and caps to segments: everything about the order that can be known before a token is read."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import Any

import numpy as np

from megatron_synE.config.data import DataConfig, Order, StageConfig, exact
from megatron_synE.data.mixture import PeriodTable, PeriodTables, numerators, rounded, share_denominator
from megatron_synE.data.segments import MovedWeights, Segment, Timeline, as_texts
from megatron_synE.data.strategies import TopicShares, make_strategy


@dataclass(frozen=True)
class Stage:
    """A stage in samples."""

    name: str
    start: int
    end: int
    weights: Mapping[str, Fraction]
    """Source → exact weight; sums to 1."""
    orders: Mapping[str, Order]
    """Source → order in this stage."""
    topic_shares: TopicShares
    """Shares that the stage sets at its start."""
    adjust: bool
    """Whether live adjustment acts."""


@dataclass(frozen=True)
class Slot:
    """Where a component stands in the mixture."""

    source: str
    topic: str | None
    language: str
    capacity: int | None
    """Samples it may give; None without a cap."""


def make_stages(config: DataConfig) -> list[Stage]:
    """The stages with their borders: a stage ends at the last whole sample of the tokens budgeted so far."""
    stages, tokens, start = [], 0, 0
    orders: dict[str, Order] = {name: source.order for name, source in config.sources.items()}
    for stage in config.stages:
        tokens += stage.tokens
        orders = {**orders, **stage.orders}
        end = tokens // config.seq_length
        stages.append(
            Stage(stage.name, start, end, config.stage_weights(stage), orders, stage_topic_shares(stage), stage.adjust)
        )
        start = end
    return stages


def stage_topic_shares(stage: StageConfig) -> TopicShares:
    """The shares that a stage sets, as exact rationals."""
    return {
        source: {topic: exact(share) for topic, share in shares.items()}
        for source, shares in stage.topic_shares.items()
    }


def round_shares(shares: Mapping[str, Fraction], stage: Stage) -> dict[str, Fraction]:
    """Topic shares rounded to a denominator that leaves the stage's weights exact in the period."""
    new = rounded(list(shares.values()), share_denominator(list(stage.weights.values())))
    return dict(zip(shares, new, strict=True))


def with_moved(stage: Stage, moved: MovedWeights | None) -> Stage:
    """The stage with the weights in force, where a decision moved them."""
    weights = moved.instead_of(stage.weights) if moved is not None else None
    return stage if weights is None else replace(stage, weights=weights)


class Planner:
    """Plans segments from any sample to the end of the run.

    Args:
        slots: the components in order.
        initial_topic_shares: of every source with topics, before any stage or schedule sets others.
    """

    def __init__(
        self, config: DataConfig, slots: Sequence[Slot], initial_topic_shares: TopicShares
    ) -> None:
        self.config, self.slots, self.tables = config, slots, PeriodTables()
        self.stages = make_stages(config)
        self.num_samples = self.stages[-1].end
        self.initial_topic_shares = initial_topic_shares
        scheduled = make_strategy(config.adjustment).scheduled()
        self.scheduled = [(-(-tokens // config.seq_length), shares) for tokens, shares in scheduled]

    def describe(self) -> dict[str, Any]:
        """What the plan was made from, as JSON; a checkpoint of another plan is planned anew from where it stands."""

        def written(shares: TopicShares) -> dict[str, dict[str, str]]:
            return {name: as_texts(topics) for name, topics in shares.items()}

        return {
            "stages": [
                {
                    "name": stage.name,
                    "end": stage.end,
                    "weights": as_texts(stage.weights),
                    "orders": dict(stage.orders),
                    "topic_shares": written(stage.topic_shares),
                }
                for stage in self.stages
            ],
            "schedule": [[sample, written(shares)] for sample, shares in self.scheduled],
            "capacities": [slot.capacity for slot in self.slots] if self.config.exhausted == "reweight" else [],
            "components": [[slot.source, slot.topic] for slot in self.slots],
        }

    def stage_at(self, sample: int) -> Stage:
        """The stage of a sample; the last one's for the end of the run."""
        return next((stage for stage in self.stages if sample < stage.end), self.stages[-1])

    def timeline(self) -> Timeline:
        """The whole run from sample 0."""
        cursors = np.zeros(len(self.slots), np.int64)
        return Timeline(self.plan(0, cursors, self.initial_topic_shares, "stage"), self.num_samples, self.tables)

    def replan(
        self, timeline: Timeline, sample: int, topic_shares: TopicShares, reason: str,
        moved: MovedWeights | None = None,
    ) -> Timeline:  # fmt: skip
        """What `timeline` holds before `sample`, and the rest planned anew with these topic shares.

        Args: moved: weights of the sources from there on; None: as they are.
        """
        kept = [segment for segment in timeline.segments if segment.start < sample]
        moved = moved or timeline.at(sample).moved
        planned = self.plan(sample, timeline.cursors(sample), topic_shares, reason, moved)
        return Timeline([*kept, *planned], self.num_samples, self.tables)

    def plan(
        self, start: int, cursors: np.ndarray, topic_shares: TopicShares, reason: str,
        moved: MovedWeights | None = None,
    ) -> list[Segment]:  # fmt: skip
        """Segments from sample `start` on, with components standing at `cursors` int64[C].

        Args: moved: weights of the sources instead of the stages' own, up to the first stage with other own ones.
        """
        segments: list[Segment] = []
        for stage in self.stages:
            if stage.end <= start:
                continue
            moved = moved if moved is not None and moved.instead_of(stage.weights) is not None else None
            first = max(stage.start, start)
            changes = {first: (reason if first == start else "stage", self._opening(stage, first, reason))}
            changes |= {sample: ("schedule", new) for sample, new in self.scheduled if first < sample < stage.end}
            for (sample, (why, new)), end in zip(changes.items(), [*list(changes)[1:], stage.end], strict=True):
                topic_shares = {**topic_shares, **new}
                cursors = self._fill(segments, stage, sample, end, cursors, topic_shares, why, moved)
        return segments

    def _opening(self, stage: Stage, sample: int, reason: str) -> TopicShares:
        """The topic shares that come into force at `sample`, where a stage or a plan begins."""
        was_decided = reason in ("adjustment", "restoration")
        at_start = stage.topic_shares if sample == stage.start and not was_decided else {}
        scheduled = [shares for point, shares in self.scheduled if point == sample]
        return {**at_start, **(scheduled[-1] if scheduled else {})}

    def _fill(
        self,
        segments: list[Segment],
        stage: Stage,
        start: int,
        end: int,
        cursors: np.ndarray,
        topic_shares: TopicShares,
        reason: str,
        moved: MovedWeights | None,
    ) -> np.ndarray:
        """Append the segments of [start, end) and return the cursors at its end."""
        stage = with_moved(stage, moved)
        while start < end:
            counts = self.numerators(stage, topic_shares, cursors, start)
            standing = tuple(int(cursor) for cursor in cursors)
            segments.append(Segment(start, stage.name, counts, standing, topic_shares, stage.orders, reason, moved))
            table = self.tables.get(counts)
            stop = self._first_exhaustion(table, start, end, cursors) if self.config.exhausted == "reweight" else end
            cursors = cursors + table.counts(stop - start)
            start, reason = stop, "exhausted"
        return cursors

    def _first_exhaustion(self, table: PeriodTable, start: int, end: int, cursors: np.ndarray) -> int:
        """The first sample in [start, end) for which its component has nothing left, or `end`."""
        counts, stop = table.counts(end - start), end
        for number, slot in enumerate(self.slots):
            if slot.capacity is None:
                continue
            left = max(0, slot.capacity - int(cursors[number]))  # the cap may have been lowered below what was read
            if counts[number] > left:
                stop = min(stop, start + table.offset_of(number, left))
        return stop

    def numerators(
        self, stage: Stage, topic_shares: TopicShares, cursors: np.ndarray, sample: int
    ) -> tuple[int, ...]:
        """Integer weights of all components; those that are exhausted leave theirs to what stands nearest.

        That is the other topics of the source, then the other sources of the language, then all sources.
        """
        members: dict[str, list[int]] = {}
        for number, slot in enumerate(self.slots):
            members.setdefault(slot.source, []).append(number)
        shares = {name: self._member_shares(numbers, topic_shares, cursors) for name, numbers in members.items()}
        weights = self._living_weights(stage, {name for name in shares if sum(shares[name]) > 0}, sample)
        groups = [(weights[name], shares[name]) for name in members]
        result = [0] * len(self.slots)
        for numbers, counts in zip(members.values(), numerators(groups), strict=True):
            for number, count in zip(numbers, counts, strict=True):
                result[number] = count
        return tuple(result)

    def _member_shares(
        self, numbers: Sequence[int], topic_shares: TopicShares, cursors: np.ndarray
    ) -> list[Fraction]:
        shares = []
        for number in numbers:
            slot = self.slots[number]
            share = Fraction(1) if slot.topic is None else topic_shares[slot.source].get(slot.topic, Fraction(0))
            spent = slot.capacity is not None and cursors[number] >= slot.capacity
            shares.append(Fraction(0) if spent and self.config.exhausted == "reweight" else share)
        total = sum(shares)
        return [share / total for share in shares] if total > 0 else shares

    def _living_weights(self, stage: Stage, living: set[str], sample: int) -> dict[str, Fraction]:
        wanted = {name: weight for name, weight in stage.weights.items() if weight > 0}
        weights = {name: weight for name, weight in wanted.items() if name in living}
        if not weights:
            raise ValueError(
                f"data.stages.{stage.name}: every source has reached its max_epochs at sample {sample}; "
                "raise max_epochs, shorten the stage or add documents"
            )
        language = {slot.source: slot.language for slot in self.slots}
        for name in wanted.keys() - living:
            peers = {peer: wanted[peer] for peer in weights if language[peer] == language[name]}
            peers = peers or {peer: wanted[peer] for peer in weights}
            for peer, weight in peers.items():
                weights[peer] += wanted[name] * weight / sum(peers.values())
        return {name: weights.get(name, Fraction(0)) for name in stage.weights}
