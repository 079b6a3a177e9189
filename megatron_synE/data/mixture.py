"""Weights as exact rationals, and the periodic order that honours them.

A segment's weights are integers n_c that sum to a period Q. One table of Q entries, in which every prefix gives each
component its share within one sample, is repeated for the whole segment, so sample k of a segment is found by a divmod
and a look-up: component c = table[k mod Q], number (k div Q)·n_c + rank[k mod Q] of those that the segment gives to c.
"""

from __future__ import annotations

import math
import threading
from collections import OrderedDict
from collections.abc import Sequence
from fractions import Fraction

import numpy as np

from megatron_synE.data import native

MAX_PERIOD = 1 << 20


class PeriodTable:
    """The order of one period. Holds 6 bytes per entry."""

    def __init__(self, numerators: Sequence[int]) -> None:
        self.numerators = np.array(numerators, np.int64)
        assert (self.numerators >= 0).all() and 0 < self.numerators.sum() <= MAX_PERIOD, numerators
        self.component, self.rank = native.period_table(self.numerators)

    @property
    def period(self) -> int:
        """Q, in samples."""
        return len(self.component)

    def locate(self, offsets: np.ndarray, cursors: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Component int32[K] and its sample int64[K], at offsets int64[K] into a segment.

        Args: cursors: int64[C] where the components stand at the segment's start.
        """
        return native.locate(offsets, self.component, self.rank, self.numerators, cursors)

    def counts(self, offset: int) -> np.ndarray:
        """int64[C]: samples of each component among the first `offset` of a segment."""
        turn, place = divmod(offset, self.period)
        return turn * self.numerators + np.bincount(self.component[:place], minlength=len(self.numerators))

    def offset_of(self, component: int, occurrence: int) -> int:
        """Offset at which `component` comes for the `occurrence`-th time, counted from 0."""
        turn, rank = divmod(occurrence, int(self.numerators[component]))
        return turn * self.period + int(np.flatnonzero(self.component == component)[rank])


class PeriodTables:
    """The period tables used last, by their numerators."""

    def __init__(self, kept: int = 4) -> None:
        self.kept = kept
        self._tables: OrderedDict[tuple[int, ...], PeriodTable] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, numerators: tuple[int, ...]) -> PeriodTable:
        """The table of these weights, built when it is not at hand."""
        with self._lock:
            found = self._tables.pop(numerators, None) or PeriodTable(numerators)
            self._tables[numerators] = found
            if len(self._tables) > self.kept:
                self._tables.popitem(last=False)
        return found


def apportion(shares: Sequence[Fraction], total: int) -> list[int]:
    """Integers that sum to `total`, each within 1 of its share of it (largest remainder).

    `shares` sum to 1. A positive share gets 1 at least; where that needs it, the largest entries give up units.
    """
    assert sum(shares) == 1, shares
    floors = [math.floor(share * total) for share in shares]
    remainders = sorted(range(len(shares)), key=lambda i: (floors[i] - shares[i] * total, i))
    for i in remainders[: total - sum(floors)]:
        floors[i] += 1
    starved = [i for i, share in enumerate(shares) if share > 0 and floors[i] == 0]
    for i in starved:
        largest = max(range(len(shares)), key=lambda j: (floors[j], -j))
        if floors[largest] <= 1:
            raise ValueError(
                f"{len(starved)} positive shares are too small for the mixture's period of {MAX_PERIOD}; "
                "raise the source's weight, set small topic shares to 0 or merge topics"
            )
        floors[largest] -= 1
        floors[i] = 1
    return floors


def rounded(shares: Sequence[Fraction], denominator: int) -> list[Fraction]:
    """Shares that sum to 1, rounded to a common denominator."""
    return [Fraction(n, denominator) for n in apportion(shares, denominator)]


def numerators(groups: Sequence[tuple[Fraction, Sequence[Fraction]]]) -> list[list[int]]:
    """Integers per group and member whose sum is the period, at most MAX_PERIOD.

    Args: groups as (weight, shares of its members); weights sum to 1, and so do the shares of a group of positive
        weight. The weights are kept exactly whenever their common denominator allows it; the members of a group
        share its integer, exactly where that fits, else by largest remainder. So rounding never moves a group.
    """
    exact = [weight * share for weight, shares in groups for share in shares if weight > 0]
    period = math.lcm(*(value.denominator for value in exact))
    if period > MAX_PERIOD:
        period = math.lcm(*(weight.denominator for weight, _ in groups))
        period = period * (MAX_PERIOD // period) if period <= MAX_PERIOD else MAX_PERIOD
    units = apportion([weight for weight, _ in groups], period)
    return [
        apportion(list(shares), unit) if unit else [0] * len(shares)
        for unit, (_, shares) in zip(units, groups, strict=True)
    ]


def share_denominator(weights: Sequence[Fraction]) -> int:
    """Largest denominator of topic shares that still fits the period beside these group weights."""
    return max(1, MAX_PERIOD // math.lcm(*(weight.denominator for weight in weights)))
