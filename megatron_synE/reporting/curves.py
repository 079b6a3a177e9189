"""Curves of any length in bounded memory: points are left out by one rule that keeps the extremes."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Generic, NamedTuple, TypeVar

from megatron_synE.reporting.record_shapes import is_number

Item = TypeVar("Item")


class Point(NamedTuple):
    """One value of a record."""

    step: int
    tokens: int
    """Read when it was written."""
    value: float


class ThinnedCurve:
    """The points of a curve in the order they were recorded; of a long one, those that show its form.

    Up to `max_points` all are kept. Of a longer curve, runs of equally many neighbouring points keep their lowest and
    their highest one; the first and the last point of all are kept, too. Every point that is kept was recorded.
    """

    def __init__(self, max_points: int) -> None:
        assert max_points >= 4 and max_points % 4 == 0, max_points
        self.max_points = max_points
        self.num_recorded = 0
        """Finite values."""
        self.num_missing = 0
        """Values that are no finite number."""
        self.first: Point | None = None
        self.last: Point | None = None
        self._width = 1
        """Points in a run."""
        self._runs: list[tuple[Point, Point]] = []
        """Lowest and highest of each."""

    def add(self, step: int, tokens: int, value: Any) -> None:
        """One more point."""
        if not is_number(value):
            self.num_missing += 1
            return
        point = Point(step, tokens, float(value))
        self.first, self.last = self.first or point, point
        if self.num_recorded % self._width == 0:
            if len(self._runs) == self.max_points // 2:
                self._halve()
            self._runs.append((point, point))
        else:
            low, high = self._runs[-1]
            if point.value < low.value:
                self._runs[-1] = point, high
            elif point.value >= high.value:
                self._runs[-1] = low, point
        self.num_recorded += 1

    def points(self) -> list[Point]:
        """What is kept, in its order."""
        return list(dict.fromkeys(self._in_order()))

    @property
    def is_thinned(self) -> bool:
        """Whether points were left out."""
        return self._width > 2

    def _in_order(self) -> Iterator[Point]:
        if self.first is not None:
            yield self.first
        for low, high in self._runs:
            yield from sorted((low, high))
        if self.last is not None:
            yield self.last

    def _halve(self) -> None:
        """Two neighbouring runs become one. There is an even number of them, all of them full.

        Of equal values the first one is the lowest and the last one the highest: two points of a run are both kept.
        """
        pairs = zip(self._runs[::2], self._runs[1::2], strict=True)
        self._runs = [(min(one[0], two[0], key=_value), max(two[1], one[1], key=_value)) for one, two in pairs]
        self._width *= 2


def _value(point: Point) -> float:
    return point.value


class EveryNth(Generic[Item]):
    """Things in their order: all of them, or of more than `max_kept` every second, fourth … one."""

    def __init__(self, max_kept: int) -> None:
        self._max_kept = max_kept
        self.kept: list[Item] = []
        self.num_recorded = 0
        self._stride = 1

    def add(self, item: Item) -> None:
        """One more."""
        if self.num_recorded % self._stride == 0:
            self.kept.append(item)
            if len(self.kept) > self._max_kept:
                self.kept, self._stride = self.kept[::2], self._stride * 2
        self.num_recorded += 1
