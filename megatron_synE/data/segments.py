"""The timeline: ranges of global sample numbers with constant weights, and where each component stands at each."""

from __future__ import annotations

import bisect
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, get_args

import numpy as np

from megatron_synE.config.data import Order
from megatron_synE.config.json_fields import JsonFields
from megatron_synE.data.mixture import MAX_PERIOD, PeriodTables
from megatron_synE.data.strategies import TopicShares

RATIONAL = re.compile(r"[0-9]{1,400}(/0*[1-9][0-9]{0,400})?", re.ASCII)


@dataclass(frozen=True)
class MovedWeights:
    """Weights of the sources that a decision set. They hold as long as the plan's own stay those it moved them from."""

    planned: Mapping[str, Fraction]
    """Source → weight in the plan, of those that have one."""
    weights: Mapping[str, Fraction]
    """Source → weight instead, of those that have one."""

    def instead_of(self, planned: Mapping[str, Fraction]) -> dict[str, Fraction] | None:
        """The weight of every source in `planned`, zero included; None where those are not what they were."""
        if with_weight(planned) != self.planned:
            return None
        return {name: self.weights.get(name, Fraction(0)) for name in planned}

    def to_json(self) -> dict[str, dict[str, str]]:
        """Rationals as `a/b`."""
        return {"planned": as_texts(self.planned), "weights": as_texts(self.weights)}

    @staticmethod
    def from_json(fields: JsonFields, sources: Collection[str]) -> MovedWeights:
        """Inverse of `to_json`. ValueError naming the field for what is no weight of one of these sources."""
        found = MovedWeights(shares_from_json(fields, "planned"), shares_from_json(fields, "weights"))
        for name, weights in (("planned", found.planned), ("weights", found.weights)):
            if not weights.keys() <= set(sources) or 0 in weights.values():
                raise fields.wrong(name, "names a source without a component, or without a weight")
        return found


@dataclass(frozen=True)
class Segment:
    """A range of samples with constant weights; it ends where the next one starts."""

    start: int
    """First global sample."""
    stage: str
    """Name of the stage it belongs to."""
    numerators: tuple[int, ...]
    """[C] samples of each component in one period."""
    cursors: tuple[int, ...]
    """[C] first sample of each component that is read in this segment or later."""
    topic_shares: TopicShares
    """Shares of the topics in force; what an adjustment starts from, also where the source has no weight now."""
    orders: Mapping[str, Order]
    """Order of each source's documents; a component re-orders what it has not read where this changes."""
    reason: str
    """Why it begins: `stage`, `adjustment`, `restoration`, `schedule`, `exhausted` or `config`."""
    moved: MovedWeights | None = None
    """Weights of the sources that a decision set; None: the stage's own."""

    def to_json(self) -> dict[str, Any]:
        """The segment as JSON; rationals as `a/b`."""
        moved = {} if self.moved is None else {"moved_weights": self.moved.to_json()}
        return {
            "start": self.start,
            "stage": self.stage,
            "numerators": list(self.numerators),
            "cursors": list(self.cursors),
            "topic_shares": {source: as_texts(shares) for source, shares in self.topic_shares.items()},
            "orders": dict(self.orders),
            "reason": self.reason,
            **moved,
        }

    @staticmethod
    def from_json(fields: JsonFields, components: Sequence[str]) -> Segment:
        """Inverse of `to_json`. ValueError naming the field for what is no segment of components with these names."""
        num_components = len(components)
        numerators, cursors = fields.integers("numerators", high=MAX_PERIOD), fields.integers("cursors")
        for name, values in (("numerators", numerators), ("cursors", cursors)):
            if len(values) != num_components:
                raise fields.wrong(name, f"has {len(values)} entries for {num_components} components")
        if not 0 < sum(numerators) <= MAX_PERIOD:
            raise fields.wrong("numerators", f"sums to {sum(numerators)}, not to 1 to {MAX_PERIOD}")
        shares = fields.inner("topic_shares")
        return Segment(
            start=fields.integer("start"),
            stage=fields.text("stage"),
            numerators=tuple(numerators),
            cursors=tuple(cursors),
            topic_shares={source: shares_from_json(shares, source) for source in shares.content},
            orders=dict(fields.texts_by_name("orders", lambda order: order in get_args(Order), "an order")),  # type: ignore[arg-type]
            reason=fields.text("reason"),
            moved=MovedWeights.from_json(fields.inner("moved_weights"), [name.partition("/")[0] for name in components])
            if fields.has("moved_weights")
            else None,
        )


def with_weight(weights: Mapping[str, Fraction]) -> dict[str, Fraction]:
    """Those that are not 0."""
    return {name: weight for name, weight in weights.items() if weight}


def as_texts(shares: Mapping[str, Fraction]) -> dict[str, str]:
    """Rationals as `a/b`."""
    return {name: str(share) for name, share in shares.items()}


def shares_from_json(fields: JsonFields, name: str) -> dict[str, Fraction]:
    """Exact shares that sum to 1. The pattern bounds the digits: `1e999999999` is a number, too."""
    written = fields.texts_by_name(name, lambda share: RATIONAL.fullmatch(share) is not None, "a share such as 1/3")
    found = {name: Fraction(share) for name, share in written.items()}
    if sum(found.values()) != 1:
        raise fields.wrong(name, "does not sum to 1")
    return found


class Timeline:
    """Segments in order, from sample 0 to `num_samples`."""

    def __init__(self, segments: Sequence[Segment], num_samples: int, tables: PeriodTables) -> None:
        self.segments = list(segments)
        self.num_samples, self.tables = num_samples, tables
        self._starts = [segment.start for segment in segments]
        self._cursors = [np.array(segment.cursors, np.int64) for segment in segments]
        assert self._starts[0] == 0 and self._starts == sorted(set(self._starts)), "segments must ascend from sample 0"

    def number_at(self, sample: int) -> int:
        """Number of the segment in force at a sample; the last one's for the end of the run."""
        return bisect.bisect_right(self._starts, sample) - 1

    def at(self, sample: int) -> Segment:
        """The segment in force at a sample."""
        return self.segments[self.number_at(sample)]

    def end_of(self, number: int) -> int:
        """First sample after segment `number`."""
        return self.segments[number + 1].start if number + 1 < len(self.segments) else self.num_samples

    def locate(self, samples: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Component int32[K] and sample in it int64[K] of global samples int64[K], in any order."""
        samples = np.ascontiguousarray(samples, np.int64)
        if samples.size == 0:
            return np.empty(0, np.int32), np.empty(0, np.int64)
        lowest, highest = int(samples.min()), int(samples.max())
        if lowest < 0 or highest >= self.num_samples:
            raise IndexError(f"samples {lowest} to {highest} leave the stream of {self.num_samples}")
        first = self.number_at(lowest)
        if first == self.number_at(highest):
            return self._locate_within(first, samples)
        component, index = np.empty(len(samples), np.int32), np.empty(len(samples), np.int64)
        numbers = np.searchsorted(self._starts, samples, side="right") - 1
        for number in np.unique(numbers):
            here = numbers == number
            component[here], index[here] = self._locate_within(int(number), samples[here])
        return component, index

    def cursors(self, sample: int) -> np.ndarray:
        """int64[C]: samples of each component before global sample `sample`."""
        number = self.number_at(sample)
        segment = self.segments[number]
        return self._cursors[number] + self.tables.get(segment.numerators).counts(sample - segment.start)

    def _locate_within(self, number: int, samples: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        segment = self.segments[number]
        return self.tables.get(segment.numerators).locate(samples - segment.start, self._cursors[number])
