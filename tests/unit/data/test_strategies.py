"""The adjustment of topic shares."""

from __future__ import annotations

from fractions import Fraction

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from megatron_synE.config.data import AdjustmentConfig, SchedulePoint
from megatron_synE.data.strategies import Schedule, Static, TopicPerplexity, make_strategy
from megatron_synE.data.strategies.topic_perplexity import bounded

THIRDS = {"web": {topic: Fraction(1, 3) for topic in "abc"}}
BEFORE = {"web": {"a": 1.26, "b": 1.82, "c": 1.54}}
AFTER = {"web": {"a": 1.32, "b": 1.45, "c": 1.60}}


def adjustment(**fields) -> AdjustmentConfig:
    return AdjustmentConfig(**{"strategy": "topic_perplexity", "interval_tokens": 1, "floor": 0, "cap": 1, **fields})


def test_worked_example_of_the_paper() -> None:
    """By hand: Δ = +0.06, -0.37, +0.06; the largest is 0.37, so δ = 6/37, -1, 6/37 = 0.16216, -1, 0.16216.

    f = 1 + 0.2·δ = 1.032432, 0.8, 1.032432, which sum to 2.864865; equal shares stay proportional to f:
    1.032432/2.864865 = 0.360377, 0.8/2.864865 = 0.279245, 0.360377. (Exactly 191/530, 148/530, 191/530.)
    """
    proposal = TopicPerplexity(adjustment()).decide(THIRDS, BEFORE, AFTER)["web"]
    assert proposal.inputs["delta"]["a"] == pytest.approx(0.162162, abs=1e-6)
    assert proposal.inputs["delta"]["b"] == -1
    assert proposal.inputs["factor"] == pytest.approx({"a": 1.032432, "b": 0.8, "c": 1.032432}, abs=1e-6)
    assert {topic: float(share) for topic, share in proposal.shares.items()} == pytest.approx(
        {"a": 191 / 530, "b": 148 / 530, "c": 191 / 530}, abs=1e-12
    )
    assert sum(proposal.shares.values()) == 1


def test_weights_per_topic_scale_the_step() -> None:
    """By hand: w_b = 0.5 halves b's step: f = 1.032432, 0.9, 1.032432, sum 2.964865; b gets 0.9/2.964865 = 0.303555."""
    proposal = TopicPerplexity(adjustment(topic_weights={"b": 0.5})).decide(THIRDS, BEFORE, AFTER)["web"]
    assert float(proposal.shares["b"]) == pytest.approx(0.303555, abs=1e-6)


def test_floor_takes_from_the_others_in_proportion() -> None:
    """By hand: b is held at 0.3 instead of 0.279; a and c share the other 0.7."""
    proposal = TopicPerplexity(adjustment(floor=0.3)).decide(THIRDS, BEFORE, AFTER)["web"]
    assert proposal.shares["b"] == Fraction(3, 10)
    assert [float(proposal.shares[topic]) for topic in "ac"] == pytest.approx([0.35, 0.35])


def test_cap_gives_to_the_others_in_proportion() -> None:
    shares = bounded({"a": Fraction(8, 10), "b": Fraction(1, 10), "c": Fraction(1, 10)}, 0.01, 0.5)
    assert shares == {"a": Fraction(1, 2), "b": Fraction(1, 4), "c": Fraction(1, 4)}


def test_no_change_of_perplexity_changes_nothing() -> None:
    strategy = TopicPerplexity(adjustment())
    assert strategy.decide(THIRDS, AFTER, AFTER)["web"].shares == THIRDS["web"]


def test_languages_are_adjusted_each_on_its_own() -> None:
    shares = {"web_zh": THIRDS["web"], "web_en": THIRDS["web"]}
    before = {"web_zh": BEFORE["web"], "web_en": {"a": 100.0, "b": 100.0, "c": 100.0}}
    after = {"web_zh": AFTER["web"], "web_en": {"a": 190.0, "b": 100.0, "c": 100.0}}
    both = TopicPerplexity(adjustment()).decide(shares, before, after)
    alone = TopicPerplexity(adjustment()).decide({"web_zh": THIRDS["web"]}, before, after)
    assert both["web_zh"] == alone["web_zh"]


@given(
    st.lists(st.tuples(st.integers(0, 100), st.floats(1, 1e6), st.floats(1, 1e6)), min_size=2, max_size=11),
    st.floats(0, 0.99),
    st.floats(0, 0.2),
    st.floats(0.2, 1),
)
def test_shares_stay_shares(
    topics: list[tuple[int, float, float]], alpha: float, floor: float, cap: float
) -> None:
    total, alive = sum(n for n, _, _ in topics), sum(n > 0 for n, _, _ in topics)
    assume(total > 0 and alive * Fraction(str(floor)) <= 1 <= alive * Fraction(str(cap)))
    shares = {f"t{i}": Fraction(n, total) for i, (n, _, _) in enumerate(topics)}
    before = {f"t{i}": p for i, (_, p, _) in enumerate(topics)}
    after = {f"t{i}": p for i, (_, _, p) in enumerate(topics)}
    config = adjustment(alpha=alpha, floor=floor, cap=cap)
    new = TopicPerplexity(config).decide({"web": shares}, {"web": before}, {"web": after})["web"].shares
    assert sum(new.values()) == 1
    for topic, share in new.items():
        assert share == 0 if shares[topic] == 0 else Fraction(str(floor)) <= share <= Fraction(str(cap))
    free = [t for t in new if Fraction(str(floor)) < new[t] < Fraction(str(cap))]
    factors = [1 + alpha * d for d in deltas(before, after)]
    scales = [float(new[t]) / (float(shares[t]) * factors[list(shares).index(t)]) for t in free]
    assert all(scale == pytest.approx(scales[0], rel=1e-9) for scale in scales), "topics off the bounds move together"


def deltas(before: dict[str, float], after: dict[str, float]) -> list[float]:
    changes = [after[t] - before[t] for t in before]
    largest = max(map(abs, changes))
    return [change / largest if largest else 0.0 for change in changes]


def test_impossible_bounds_are_an_error() -> None:
    with pytest.raises(ValueError, match=r"floor, cap.*cannot sum to 1"):
        bounded(THIRDS["web"], 0.4, 0.5)
    with pytest.raises(ValueError, match="cannot sum to 1"):
        bounded(THIRDS["web"], 0.1, 0.3)


def test_strategies_by_name() -> None:
    assert isinstance(make_strategy(AdjustmentConfig()), Static)
    points = [SchedulePoint(100, {"web": {"a": 0.1, "b": 0.9}})]
    schedule = make_strategy(AdjustmentConfig(strategy="schedule", schedule=points))
    assert isinstance(schedule, Schedule) and schedule.interval_tokens is None
    assert schedule.scheduled() == [(100, {"web": {"a": Fraction(1, 10), "b": Fraction(9, 10)}})]
    assert make_strategy(adjustment(interval_tokens=5)).interval_tokens == 5
    with pytest.raises(ValueError, match="unknown 'best'"):
        make_strategy(AdjustmentConfig(strategy="best"))  # type: ignore[arg-type]
