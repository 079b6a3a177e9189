"""Exact weights and the periodic order."""

from __future__ import annotations

import importlib.util
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from megatron_synE.data import fallback, native
from megatron_synE.data.mixture import MAX_PERIOD, PeriodTable, apportion, numerators

weights = st.lists(st.one_of(st.integers(0, 60), st.integers(0, 3000)), min_size=1, max_size=12).filter(any)
compiled = pytest.mark.skipif(
    importlib.util.find_spec("megatron_synE._index") is None, reason="megatron_synE._index is not built"
)


def worst_deviation(counts: list[int]) -> Fraction:
    """Largest |count - share·k| over all prefixes and components."""
    table = PeriodTable(counts)
    k = np.arange(1, table.period + 1, dtype=np.int64)
    worst = max(
        int(np.abs(np.cumsum(table.component == c, dtype=np.int64) * table.period - k * n).max())
        for c, n in enumerate(counts)
    )
    return Fraction(worst, table.period)


@settings(max_examples=150, deadline=None)
@given(weights)
def test_every_prefix_is_within_tijdemans_bound(counts: list[int]) -> None:
    num_positive = sum(n > 0 for n in counts)
    bound = 1 - Fraction(1, 2 * num_positive - 2) if num_positive > 1 else Fraction(0)
    assert worst_deviation(counts) <= bound


def test_one_dominant_and_many_small_weights() -> None:
    assert worst_deviation([999_977, *[1] * 23]) < 1


def test_full_period_with_24_components() -> None:
    rng = np.random.default_rng(0)
    cuts = np.sort(rng.choice(np.arange(1, MAX_PERIOD), 23, replace=False))
    counts = np.diff(np.concatenate([[0], cuts, [MAX_PERIOD]])).tolist()
    assert worst_deviation(counts) <= 1 - Fraction(1, 46)


@compiled
@settings(max_examples=60, deadline=None)
@given(weights)
def test_compiled_table_equals_numpy(counts: list[int]) -> None:
    mine = native.implementation().period_table(np.array(counts, np.int64))
    reference = fallback.period_table(np.array(counts))
    assert all((a == b).all() for a, b in zip(mine, reference, strict=True))


@settings(max_examples=60, deadline=None)
@given(weights, st.lists(st.integers(0, 10**12), min_size=1, max_size=20))
def test_locate_is_the_running_count(counts: list[int], offsets: list[int]) -> None:
    table = PeriodTable(counts)
    cursors = np.arange(len(counts), dtype=np.int64) * 7
    component, index = table.locate(np.array(offsets), cursors)
    for k, c, j in zip(offsets, component, index, strict=True):
        assert j == cursors[c] + table.counts(k)[c]
        assert table.offset_of(int(c), int(j - cursors[c])) == k
    both = fallback.locate(np.array(offsets), table.component, table.rank, table.numerators, cursors)
    assert (both[0] == component).all() and (both[1] == index).all()


shares = st.lists(st.integers(0, 1000), min_size=1, max_size=15).filter(any).map(
    lambda parts: [Fraction(part, sum(parts)) for part in parts]
)


@given(shares, st.integers(40, 10**6))
def test_apportion_sums_and_starves_nobody(parts: list[Fraction], total: int) -> None:
    units = apportion(parts, total)
    assert sum(units) == total
    assert all((unit > 0) == (part > 0) for unit, part in zip(units, parts, strict=True))


@given(shares, st.integers(1, 40))
def test_apportion_is_exact_where_it_can_be(parts: list[Fraction], multiple: int) -> None:
    total = multiple * np.lcm.reduce([part.denominator for part in parts])
    assert [Fraction(unit, int(total)) for unit in apportion(parts, int(total))] == parts


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.integers(1, 100), shares), min_size=1, max_size=5))
def test_rounding_members_never_moves_a_group(groups: list[tuple[int, list[Fraction]]]) -> None:
    total = sum(weight for weight, _ in groups)
    exact = [(Fraction(weight, total), members) for weight, members in groups]
    counts = numerators(exact)
    period = sum(map(sum, counts))
    assert period <= MAX_PERIOD
    assert [Fraction(sum(members), period) for members in counts] == [weight for weight, _ in exact]


def test_weights_finer_than_the_period_are_rounded() -> None:
    fine = Fraction(1, 3_000_017)
    (tiny,), (rest,) = numerators([(fine, [Fraction(1)]), (1 - fine, [Fraction(1)])])
    assert (tiny, rest) == (1, MAX_PERIOD - 1)


def test_more_positive_topics_than_units_is_an_error() -> None:
    tiny = Fraction(1, MAX_PERIOD)
    with pytest.raises(ValueError, match="too small"):
        numerators([(tiny, [Fraction(1, 2)] * 2), (1 - tiny, [Fraction(1)])])
