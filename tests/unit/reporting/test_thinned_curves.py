"""A curve keeps its form in bounded memory."""

from __future__ import annotations

import math

from hypothesis import given
from hypothesis import strategies as st

from megatron_synE.reporting.curves import Point, ThinnedCurve

VALUES = st.lists(st.integers(-50, 50), min_size=1, max_size=300)


def curve_of(values: list[int], max_points: int) -> tuple[ThinnedCurve, list[Point]]:
    curve, recorded = ThinnedCurve(max_points), []
    for number, value in enumerate(values):
        curve.add(number, 10 * number, value)
        recorded.append(Point(number, 10 * number, float(value)))
    return curve, recorded


@given(VALUES, st.sampled_from([4, 8, 40]))
def test_what_is_kept_was_recorded_and_has_the_extremes(values: list[int], max_points: int) -> None:
    curve, recorded = curve_of(values, max_points)
    kept = curve.points()
    assert set(kept) <= set(recorded) and kept == sorted(kept)
    assert len(kept) <= max_points + 2
    assert (kept[0], kept[-1]) == (recorded[0], recorded[-1])
    assert {min(values), max(values)} <= {point.value for point in kept}
    if len(values) <= max_points:
        assert kept == recorded
    assert curve.is_thinned == (len(values) > max_points)


@given(VALUES)
def test_each_run_of_neighbours_keeps_its_extremes(values: list[int]) -> None:
    curve, recorded = curve_of(values, 8)
    width = 1
    while len(values) > 4 * width:
        width *= 2
    kept = set(curve.points())
    for start in range(0, len(values), width):
        part = [point.value for point in recorded[start : start + width]]
        of_part = [point.value for point in kept if start <= point.step < start + width]
        assert (min(of_part), max(of_part)) == (min(part), max(part))


def test_a_spike_in_a_million_steps_is_seen() -> None:
    curve = ThinnedCurve(2000)
    for step in range(1_000_000):
        curve.add(step, step, 99.0 if step == 123_457 else -7.0 if step == 700_001 else 2.0 + step % 3)
    kept = curve.points()
    assert Point(123_457, 123_457, 99.0) in kept and Point(700_001, 700_001, -7.0) in kept
    assert 1000 < len(kept) <= 2002 and curve.num_recorded == 1_000_000


def test_what_is_no_number_is_counted() -> None:
    curve = ThinnedCurve(4)
    for number, value in enumerate([1.0, None, math.nan, math.inf, True, "2", 3]):
        curve.add(number, number, value)
    assert [point.value for point in curve.points()] == [1.0, 3.0]
    assert (curve.num_recorded, curve.num_missing) == (2, 5)
