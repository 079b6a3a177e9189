"""Share that goes back to a forgotten source: the rule by hand, and what the stream makes of it."""

from __future__ import annotations

import json
import random
from collections.abc import Mapping
from dataclasses import replace
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st

from megatron_synE.config.data import AdjustmentConfig, DataConfig, SourceConfig, StageConfig
from megatron_synE.config.guard import RestoreConfig
from megatron_synE.data import DataStream, ledger
from megatron_synE.data.segments import MovedWeights, with_weight
from megatron_synE.data.strategies import RestoreShare
from megatron_synE.data.strategies.restore_share import DENOMINATOR
from tests.helpers.corpora import random_documents, write_corpus
from tests.unit.data.test_plan_segments import assert_exact, change_topics_at_random, random_planner

SEQ_LENGTH = 16
PARTS = ("gives", "gives", "gets", "spared")
THREE = {"a": Fraction(1, 5), "b": Fraction(3, 5), "c": Fraction(1, 5)}


def decide(
    weights: dict[str, Fraction], *forgotten: str, planned: dict[str, Fraction] | None = None,
    spared: tuple[str, ...] = (), **rule: Any,
) -> Mapping[str, Fraction]:  # fmt: skip
    return RestoreShare(RestoreConfig(**rule)).decide(weights, planned or weights, forgotten, spared).shares


def test_the_others_give_in_proportion() -> None:
    """By hand: a gets 0.1; b and c give it 3 : 1, 0.075 and 0.025."""
    assert decide(THREE, "a", step=0.1) == {"a": Fraction(3, 10), "b": Fraction(21, 40), "c": Fraction(7, 40)}
    assert decide(THREE, "a", step=0, factor=1.5) == decide(THREE, "a", step=0.1)


def test_a_source_that_the_stage_leaves_out_gets_its_step() -> None:
    alone = {"a": Fraction(0), "b": Fraction(1)}
    assert decide(alone, "a", step="1/4") == {"a": Fraction(1, 4), "b": Fraction(3, 4)}


def test_the_cap_holds() -> None:
    assert decide(THREE, "a", step=0.5, cap=0.3)["a"] == Fraction(3, 10)
    with pytest.raises(ValueError, match=r"the cap of 0\.2"):
        decide(THREE, "a", cap=0.2)


def test_floors_hold_and_what_is_missing_is_missed_by_all() -> None:
    """By hand: b may fall from 0.6 to 0.54 (0.9 of it), c stays at its floor: 0.06 of the 0.2 that a was to get."""
    now = {"a": Fraction(22, 100), "b": Fraction(60, 100), "c": Fraction(18, 100)}
    found = decide(now, "a", planned=THREE, step=0.2, floor=0.9)
    assert found == {"a": Fraction(28, 100), "b": Fraction(54, 100), "c": Fraction(18, 100)}
    with pytest.raises(ValueError, match=r"no other source has more than its floor of 0\.9"):
        decide(found, "a", planned=THREE, step=0.2, floor=0.9)
    with pytest.raises(ValueError, match="no other source"):
        decide(THREE, "a", "b", "c")


def test_two_forgotten_sources_take_from_the_third() -> None:
    """By hand: each is to get 0.2, the third can give 0.3 of these 0.4."""
    thirds = {"a": Fraction(3, 10), "b": Fraction(1, 10), "c": Fraction(6, 10)}
    found = decide(thirds, "a", "b", step=0.2)
    assert found == {"a": Fraction(45, 100), "b": Fraction(25, 100), "c": Fraction(30, 100)}


def test_who_is_past_a_bound_gives_nothing() -> None:
    assert decide(THREE, "a", spared=("b",), step=0.1) == {"a": Fraction(3, 10), "b": THREE["b"], "c": Fraction(1, 10)}
    with pytest.raises(ValueError, match="no other source"):
        decide(THREE, "a", spared=("b", "c"))


@settings(max_examples=300, deadline=None)
@example(
    [(1, "gives"), (4, "gives"), (13, "gets"), (19, "gives"), (20, "gets"), (22, "gives"), (33, "gets"), (36, "gets")],
    Fraction(1, 2), Fraction(1), Fraction(1, 5), Fraction(1, 100),
)  # fmt: skip
@given(
    st.lists(st.tuples(st.integers(0, 60), st.sampled_from(PARTS)), min_size=2, max_size=12),
    st.fractions(0, 1, max_denominator=1000).filter(lambda share: share < 1),
    st.fractions(1, 4, max_denominator=100),
    st.fractions("1/100", "99/100", max_denominator=100),
    st.fractions(0, "99/100", max_denominator=100),
)
def test_weights_stay_weights(
    sources: list[tuple[int, str]], step: Fraction, factor: Fraction, cap: Fraction, floor: Fraction
) -> None:
    total = sum(count for count, _ in sources)
    assume(total > 0 and any(part == "gets" for _, part in sources))
    weights = {f"s{n}": Fraction(count, total) for n, (count, _) in enumerate(sources)}
    forgotten = [f"s{n}" for n, (_, part) in enumerate(sources) if part == "gets"]
    spared = tuple(f"s{n}" for n, (_, part) in enumerate(sources) if part == "spared")
    rule = {"step": str(step), "factor": str(factor), "cap": str(cap), "floor": str(floor)}
    try:
        found = decide(weights, *forgotten, spared=spared, **rule)
    except ValueError as error:
        assert str(error).startswith(("the cap", "no other source"))
        return
    # Rounding moves a weight by less than a unit; the largest gives one more to each that would have got none.
    unit = Fraction(len(sources), DENOMINATOR)
    assert sum(found.values()) == 1 and all(weight.denominator <= DENOMINATOR for weight in found.values())
    assert any(found[name] > weights[name] for name in forgotten)
    for name, weight in found.items():
        if name in forgotten:
            assert weights[name] - unit <= weight <= max(cap, weights[name]) + unit
        elif weights[name] == 0:
            assert weight == 0
        elif name in spared:
            assert abs(weight - weights[name]) <= unit
        else:
            assert floor * weights[name] - unit <= weight <= weights[name] + unit
    others = [name for name in weights if name not in {*forgotten, *spared}]
    givers = [name for name in others if found[name] > floor * weights[name] + unit]
    scales = [found[name] / weights[name] for name in givers]
    rounding = [unit / weights[name] for name in givers]
    assert all(abs(scales[0] - s) <= r + rounding[0] for s, r in zip(scales, rounding, strict=True)), "in proportion"


def test_moved_weights_are_exact_and_lose_and_repeat_nothing() -> None:
    """Random plans, topics that move, and sources that get share back at random samples."""
    num_moved = 0
    for seed in range(300):
        rng = random.Random(seed)
        planner = random_planner(rng)
        timeline = planner.timeline()
        for sample in sorted(rng.randrange(timeline.num_samples) for _ in range(rng.randint(1, 3))):
            stage = planner.stage_at(sample)
            moved = timeline.at(sample).moved
            before = moved.weights if moved is not None else with_weight(stage.weights)
            before = {name: before.get(name, Fraction(0)) for name in stage.weights}
            try:
                rule = RestoreShare(RestoreConfig(step=rng.choice([0.01, 0.07, "1/3"]), cap=0.9))
                new = rule.decide(before, stage.weights, [rng.choice(list(before))]).shares
            except ValueError:
                continue
            num_moved += 1
            shares = timeline.at(sample).topic_shares
            moved = MovedWeights(with_weight(stage.weights), with_weight(new))
            earlier = timeline.locate(np.arange(sample))
            timeline = planner.replan(timeline, sample, shares, "restoration", moved)
            assert all((a == b).all() for a, b in zip(earlier, timeline.locate(np.arange(sample)), strict=True))
            assert timeline.at(sample).moved == moved and timeline.at(sample).start == sample
        if rng.random() < 0.5:
            timeline = change_topics_at_random(rng, planner, timeline, 1)
        assert_exact(timeline)
        for segment in timeline.segments:
            planned = planner.stage_at(segment.start).weights
            weights = planned if segment.moved is None else segment.moved.instead_of(planned)
            period, found = sum(segment.numerators), dict.fromkeys(planned, Fraction(0))
            for slot, count in zip(planner.slots, segment.numerators, strict=True):
                found[slot.source] += Fraction(count, period)
            assert found == weights
    assert num_moved > 200


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> DataConfig:
    """The first two stages have the same weights, the third has others."""
    folder, rng = tmp_path_factory.mktemp("corpora"), np.random.default_rng(0)
    web = write_corpus(
        folder / "web", random_documents(rng, 300), topics=rng.integers(0, 2, 300), names=("law", "maths"),
        perplexity=rng.uniform(1, 50, 300),
    )  # fmt: skip
    book = write_corpus(folder / "book", random_documents(rng, 100))
    weights: dict[str, object] = {"web": 0.8, "book": 0.2}
    return DataConfig(
        {"web": SourceConfig(web, topics=True, topic_shares="uniform"), "book": SourceConfig(book)},
        [
            StageConfig("one", 100 * SEQ_LENGTH, weights),  # type: ignore[arg-type]
            StageConfig("ordered", 100 * SEQ_LENGTH, weights, orders={"web": "perplexity_ascending"}),  # type: ignore[arg-type]
            StageConfig("last", 100 * SEQ_LENGTH, {"web": 0.5, "book": 0.5}),
        ],
        seq_length=SEQ_LENGTH,
        heldout_fraction=0.1,
        adjustment=AdjustmentConfig("topic_perplexity", interval_tokens=40 * SEQ_LENGTH, cap=0.9),
    )


RULE = RestoreShare(RestoreConfig(step=0.1))


def through_json(state: dict) -> dict:
    return json.loads(json.dumps(state))


def order(stream: DataStream) -> np.ndarray:
    return np.stack(stream.locate(np.arange(stream.num_samples)))


def measured(law: float) -> dict[str, float]:
    return {"web/law": law, "web/maths": 9.0}


def test_a_decision_holds_until_a_stage_has_other_weights(config: DataConfig) -> None:
    stream = DataStream.build(config)
    before = order(stream)
    decision = stream.restore_share(37, ["book"], RULE, inputs={"value": {"loss of book": 3.5}})
    assert decision.shares_before == {"web": 0.8, "book": 0.2} and decision.shares_after == {"web": 0.7, "book": 0.3}
    assert (decision.at_sample, decision.moves, decision.changed) == (37, "sources", True)
    assert decision.inputs["value"] == {"loss of book": 3.5} and decision.inputs["planned_weight"]["book"] == 0.2
    assert (order(stream)[:, :37] == before[:, :37]).all()
    assert [(s.start, s.reason) for s in stream.timeline.segments] == [
        (0, "stage"), (37, "restoration"), (100, "stage"), (200, "stage"),
    ]  # fmt: skip
    assert [stream.shares(sample)["book"] for sample in (36, 37, 150, 200)] == [0.2, 0.3, 0.3, 0.5]
    assert stream.source_weights(200) == {"web": Fraction(1, 2), "book": Fraction(1, 2)}
    book = next(entry for entry in ledger(stream, 37, 200) if entry.component == "book")
    assert book.samples in (48, 49)  # 0.3 of 163
    again = stream.restore_share(120, ["book"], RULE)
    assert again.shares_after == {"web": 0.6, "book": 0.4} and stream.shares(119)["book"] == 0.3
    at_the_border = stream.restore_share(200, ["web"], RULE)
    assert at_the_border.shares_before["web"] == 0.5 and at_the_border.shares_after["web"] == 0.6
    assert [(s.start, s.reason) for s in stream.timeline.segments[-2:]] == [(120, "restoration"), (200, "restoration")]
    assert_exact(stream.timeline)


def test_a_resumed_stream_goes_on_with_it(config: DataConfig) -> None:
    stream = DataStream.build(config)
    stream.adjust(0, measured(5.0))
    stream.adjust(40, measured(5.0))
    stream.restore_share(40, ["book"], RULE)
    state = through_json(stream.state_dict(45))
    resumed = DataStream.build(config, state=state)
    assert (order(resumed) == order(stream)).all() and through_json(resumed.state_dict(45)) == state
    for both in (stream, resumed):
        assert both.next_adjustment_sample(45) == 80
        moved = both.adjust(80, measured(9.0))
        assert moved is not None and moved.moves == "topics" and both.shares(80)["book"] == 0.3
        assert sum(both.shares(80).values()) == pytest.approx(1)
        both.restore_share(80, ["book"], RULE)  # at the sample of the adjustment, whose shares stay
        assert both.shares(80)["book"] == 0.4
        assert both.shares(80)["web/law"] / 0.6 == pytest.approx(moved.shares_after["web/law"], rel=1e-4)
    assert through_json(resumed.state_dict()) == through_json(stream.state_dict())
    assert_exact(stream.timeline)


def test_a_plan_changed_at_a_resume_keeps_it_where_the_stage_is_what_it_was(config: DataConfig) -> None:
    stream = DataStream.build(config)
    stream.restore_share(40, ["book"], RULE)
    state = through_json(stream.state_dict(60))
    longer = replace(config, stages=[*config.stages[:2], replace(config.stages[2], tokens=200 * SEQ_LENGTH)])
    resumed = DataStream.build(longer, state=state)
    assert resumed.num_samples == 400 and resumed.shares(60)["book"] == 0.3 and resumed.shares(200)["book"] == 0.5
    weights = {"web": 0.9, "book": 0.1}
    other = replace(config, stages=[replace(config.stages[0], weights=weights), *config.stages[1:]])
    resumed = DataStream.build(other, state=state)
    assert [resumed.shares(sample)["book"] for sample in (59, 60, 100)] == [0.3, 0.1, 0.2]
    assert_exact(resumed.timeline)


def test_topics_that_were_adjusted_where_a_stage_begins_stay_so(config: DataConfig) -> None:
    """The stage sets shares at its start, a measurement moves them there, then share goes back."""
    opening = replace(config.stages[2], topic_shares={"web": {"law": 0.5, "maths": 0.5}})
    stream = DataStream.build(replace(config, stages=[*config.stages[:2], opening]))
    stream.adjust(160, measured(5.0))
    moved = stream.adjust(200, measured(9.0))
    assert moved is not None and moved.shares_after["web/law"] > 0.5
    stream.restore_share(200, ["book"], RULE)
    assert stream.shares(200)["book"] == 0.6
    assert stream.shares(200)["web/law"] / 0.4 == pytest.approx(moved.shares_after["web/law"], rel=1e-4)


def test_a_new_source_leaves_moved_weights_alone(config: DataConfig) -> None:
    stream = DataStream.build(config)
    stream.restore_share(40, ["book"], RULE)
    state = through_json(stream.state_dict(60))
    sources = {**config.sources, "article": config.sources["book"]}
    resumed = DataStream.build(replace(config, sources=sources), state=state)
    assert resumed.shares(60) == {"article": 0.0, "book": 0.3, "web/law": 0.35, "web/maths": 0.35}


def test_what_cannot_be_moved_leaves_everything_as_it_was(config: DataConfig) -> None:
    capped = {**config.sources, "book": replace(config.sources["book"], max_epochs=1)}
    epoch = DataStream.build(config).components[0].num_tokens // SEQ_LENGTH
    stages = [StageConfig("one", epoch * 4 * SEQ_LENGTH, {"web": 0.8, "book": 0.2})]
    cases = [
        (replace(config, sources=capped, stages=stages), epoch, "book would pass its max_epochs"),
        (
            replace(config, sources=capped, exhausted="reweight", stages=[replace(stages[0], tokens=10**5)]),
            6 * epoch,
            "book cannot be read any further",
        ),
        (config, 300, "the run is at its end"),
    ]
    for changed, sample, message in cases:
        stream = DataStream.build(changed)
        state = through_json(stream.state_dict())
        with pytest.raises(ValueError, match=message):
            stream.restore_share(sample, ["book"], RULE)
        assert through_json(stream.state_dict()) == state
        assert stream.decisions == []


def test_states_of_before_are_read(config: DataConfig) -> None:
    """Neither whose shares a decision moves nor weights were written once."""
    stream = DataStream.build(config)
    stream.adjust(0, measured(5.0))
    state = through_json(stream.state_dict(10))
    for decision in state["decisions"]:
        del decision["moves"]
    assert not any("moved_weights" in segment for segment in state["segments"])
    resumed = DataStream.build(config, state=state)
    assert (order(resumed) == order(stream)).all() and resumed.decisions == stream.decisions


