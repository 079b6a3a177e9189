"""Random schedules: exact shares in every segment, no gap and no repeat over the whole run."""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from dataclasses import replace
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from megatron_synE.config.data import AdjustmentConfig, DataConfig, SchedulePoint, SourceConfig, StageConfig
from megatron_synE.config.json_fields import JsonFields
from megatron_synE.data.plan import Planner, Slot, round_shares
from megatron_synE.data.segments import Segment, Timeline

TOPICS = ("law", "history", "others")
LANGUAGES = ("zh", "en")


def random_shares(rng: random.Random, names: list[str]) -> dict[str, str]:
    """Exact shares with some zeros."""
    parts = [rng.choice([0, 1, 1, 2, 5, 17]) for _ in names]
    parts[rng.randrange(len(parts))] += 1
    return {name: f"{part}/{sum(parts)}" for name, part in zip(names, parts, strict=True)}


def random_planner(rng: random.Random, exhausted: str = "error") -> Planner:
    """One to four sources, some with topics, one to three stages."""
    names = [f"s{i}" for i in range(rng.randint(1, 4))]
    sources = {n: SourceConfig(n, language=rng.choice(LANGUAGES), topics=rng.random() < 0.5) for n in names}
    stages = [
        StageConfig(f"stage{i}", rng.randint(8, 400), weights=dict(random_shares(rng, names)))
        for i in range(rng.randint(1, 3))
    ]
    config = DataConfig(sources=sources, stages=stages, seq_length=4, exhausted=exhausted)
    assert config.problems() == []
    slots = []
    for name, source in sources.items():
        for topic in TOPICS if source.topics else [None]:
            capacity = rng.randint(0, 60) if exhausted == "reweight" and rng.random() < 0.6 else None
            slots.append(Slot(name, topic, source.language, capacity))
    shares = {
        name: {t: Fraction(s) for t, s in random_shares(rng, list(TOPICS)).items()}
        for name, source in sources.items()
        if source.topics
    }
    return Planner(config, slots, shares)


def change_topics_at_random(rng: random.Random, planner: Planner, timeline: Timeline, times: int) -> Timeline:
    """Replan at random samples, forward in time."""
    for sample in sorted(rng.randrange(timeline.num_samples) for _ in range(times)):
        shares = dict(timeline.at(sample).topic_shares)
        for source in shares:
            moved = {t: Fraction(s) for t, s in random_shares(rng, list(TOPICS)).items()}
            shares[source] = round_shares(moved, planner.stage_at(sample)) if rng.random() < 0.03 else moved
        timeline = planner.replan(timeline, sample, shares, "adjustment")
    return timeline


def assert_exact(timeline: Timeline) -> None:
    """Each component is read 0, 1, 2 … over the run, and each segment honours its shares within one sample."""
    component, index = timeline.locate(np.arange(timeline.num_samples))
    num_components = len(timeline.segments[0].numerators)
    for c in range(num_components):
        own = index[component == c]
        assert (own == np.arange(len(own))).all(), "a gap, a repeat, or another order"
    for number, segment in enumerate(timeline.segments):
        end, period = timeline.end_of(number), sum(segment.numerators)
        k = np.arange(1, end - segment.start + 1)
        for c, count in enumerate(segment.numerators):
            realised = np.cumsum(component[segment.start : end] == c)
            assert (np.abs(realised * period - k * count) < period).all()
        assert (timeline.cursors(segment.start) == segment.cursors).all()


def test_a_thousand_random_schedules() -> None:
    for seed in range(1000):
        rng = random.Random(seed)
        planner = random_planner(rng)
        timeline = change_topics_at_random(rng, planner, planner.timeline(), rng.randint(0, 3))
        assert timeline.num_samples == sum(stage.tokens for stage in planner.config.stages) // 4
        assert_exact(timeline)


capacities = st.none() | st.integers(0, 200)
parts = st.lists(st.integers(0, 40), min_size=5, max_size=5).filter(any)


@settings(max_examples=150, deadline=None)
@given(
    st.lists(st.tuples(st.integers(1, 300), parts), min_size=1, max_size=4),
    st.lists(st.tuples(st.floats(0, 1, exclude_max=True), parts), max_size=3),
)
def test_any_weights_budgets_and_changes(
    stages: list[tuple[int, list[int]]], changes: list[tuple[float, list[int]]]
) -> None:
    """Four plain sources and one of five topics; topic shares change at any sample."""

    def shares(names: Sequence[str], counts: list[int]) -> dict[str, str]:
        return {name: f"{count}/{sum(counts)}" for name, count in zip(names, counts, strict=True)}

    names, topics = ["a", "b", "c", "d", "web"], ["t0", "t1", "t2", "t3", "t4"]
    config = DataConfig(
        sources={name: SourceConfig(name, topics=name == "web") for name in names},
        stages=[StageConfig(str(i), tokens, dict(shares(names, w))) for i, (tokens, w) in enumerate(stages)],
        seq_length=1,
    )
    assert config.problems() == []
    slots = [Slot(name, None, "", None) for name in names[:4]] + [Slot("web", topic, "", None) for topic in topics]
    planner = Planner(config, slots, {"web": {topic: Fraction(1, 5) for topic in topics}})
    timeline = planner.timeline()
    for place, counts in sorted(changes):
        moved = {topic: Fraction(share) for topic, share in shares(topics, counts).items()}
        timeline = planner.replan(timeline, int(place * timeline.num_samples), {"web": moved}, "adjustment")
    assert timeline.num_samples == sum(tokens for tokens, _ in stages)
    assert_exact(timeline)
    for number, segment in enumerate(timeline.segments):
        if segment.start < timeline.end_of(number):
            weights = planner.stage_at(segment.start).weights
            period = sum(segment.numerators)
            assert [Fraction(n, period) for n in segment.numerators[:4]] == [weights[name] for name in names[:4]]


def test_random_schedules_with_caps_never_pass_them() -> None:
    finished = 0
    for seed in range(300):
        rng = random.Random(seed)
        planner = random_planner(rng, "reweight")
        try:
            timeline = change_topics_at_random(rng, planner, planner.timeline(), rng.randint(0, 2))
        except ValueError as error:
            assert "max_epochs" in str(error)
            continue
        finished += 1
        assert_exact(timeline)
        for slot, cursor in zip(planner.slots, timeline.cursors(timeline.num_samples), strict=True):
            assert slot.capacity is None or cursor <= slot.capacity
    assert finished > 100


@settings(max_examples=150, deadline=None)
@given(st.integers(0, 10**6), st.lists(st.tuples(st.floats(0, 1), st.lists(capacities, min_size=12)), max_size=4))
def test_caps_lowered_and_raised_at_any_sample(seed: int, changes: list[tuple[float, list[int | None]]]) -> None:
    """A component past its new cap reads nothing from there on; raised again, it goes on where it stood."""
    planner = random_planner(random.Random(seed), "reweight")
    try:
        timeline = planner.timeline()
        for place, caps in sorted(changes, key=lambda change: change[0]):
            sample = int(place * timeline.num_samples)
            slots = [replace(slot, capacity=cap) for slot, cap in zip(planner.slots, caps, strict=False)]
            planner = Planner(planner.config, slots, planner.initial_topic_shares)
            before = timeline.cursors(sample)
            timeline = planner.replan(timeline, sample, timeline.at(sample).topic_shares, "config")
            for slot, start, end in zip(slots, before, timeline.cursors(timeline.num_samples), strict=True):
                assert slot.capacity is None or end <= max(slot.capacity, start)
    except ValueError as error:
        assert "max_epochs" in str(error)
        return
    assert_exact(timeline)


def test_weights_changed_from_1_1_to_2_1_lose_and_repeat_nothing() -> None:
    """The case of the design page, where megatron-core loses 83 samples and repeats 83."""
    config = DataConfig(
        sources={"a": SourceConfig("a"), "b": SourceConfig("b")},
        stages=[StageConfig("one", 500, {"a": 0.5, "b": 0.5}), StageConfig("two", 500, {"a": "2/3", "b": "1/3"})],
        seq_length=1,
    )
    timeline = Planner(config, [Slot("a", None, "", None), Slot("b", None, "", None)], {}).timeline()
    assert timeline.cursors(500).tolist() == [250, 250]
    assert timeline.cursors(1000).tolist() in ([583, 417], [584, 416])
    assert_exact(timeline)


def two_languages(**capacities: int) -> Planner:
    sources = {
        "web_zh": SourceConfig("z", language="zh", topics=True),
        "book_zh": SourceConfig("b", language="zh"),
        "web_en": SourceConfig("e", language="en"),
    }
    stages = [StageConfig("one", 1000, {"web_zh": 0.2, "book_zh": 0.1, "web_en": 0.7})]
    slots = [Slot("web_zh", topic, "zh", capacities.get(topic)) for topic in ("law", "others")]
    slots += [Slot("book_zh", None, "zh", capacities.get("book")), Slot("web_en", None, "en", capacities.get("web_en"))]
    shares = {"web_zh": {"law": Fraction(1, 2), "others": Fraction(1, 2)}}
    return Planner(DataConfig(sources=sources, stages=stages, seq_length=1, exhausted="reweight"), slots, shares)


def test_an_exhausted_topic_leaves_its_share_to_its_source_then_to_its_language() -> None:
    timeline = two_languages(law=20, others=100).timeline()
    shares = [
        (segment.start, segment.reason, [Fraction(n, sum(segment.numerators)) for n in segment.numerators])
        for segment in timeline.segments
    ]
    tenth = Fraction(1, 10)
    assert shares[0] == (0, "stage", [tenth, tenth, tenth, 7 * tenth])
    assert shares[1][1:] == ("exhausted", [0, 2 * tenth, tenth, 7 * tenth])
    assert shares[2][1:] == ("exhausted", [0, 0, 3 * tenth, 7 * tenth])
    assert timeline.cursors(shares[1][0]).tolist()[0] == 20
    assert timeline.cursors(1000).tolist()[:2] == [20, 100]


def test_everything_exhausted_is_an_error_that_names_the_stage() -> None:
    with pytest.raises(ValueError, match=r"data\.stages\.one.*max_epochs"):
        two_languages(law=1, others=1, book=1, web_en=1).timeline()


def test_schedule_points_become_segments() -> None:
    points = [
        SchedulePoint(0, {"web": {"law": 1, "others": 0}}),
        SchedulePoint(21, {"web": {"law": "1/4", "others": "3/4"}}),
        SchedulePoint(40, {"web": {"law": "1/2", "others": "1/2"}}),
    ]
    config = DataConfig(
        sources={"web": SourceConfig("w", topics=True)},
        stages=[StageConfig("one", 40, {"web": 1}), StageConfig("two", 40, {"web": 1})],
        seq_length=2,
        adjustment=AdjustmentConfig(strategy="schedule", schedule=points),
    )
    assert config.problems() == []
    slots = [Slot("web", topic, "", None) for topic in ("law", "others")]
    initial = {"web": {"law": Fraction(1, 2), "others": Fraction(1, 2)}}
    segments = Planner(config, slots, initial).timeline().segments
    assert [(s.start, s.reason) for s in segments] == [(0, "stage"), (11, "schedule"), (20, "stage")]
    assert [s.numerators for s in segments] == [(1, 0), (1, 3), (1, 1)]


def test_segments_survive_json() -> None:
    planner = random_planner(random.Random(3))
    names = [slot.source if slot.topic is None else f"{slot.source}/{slot.topic}" for slot in planner.slots]
    for segment in planner.timeline().segments:
        fields = JsonFields(json.loads(json.dumps(segment.to_json())), "", "")
        assert Segment.from_json(fields, names) == segment


def test_samples_outside_the_stream_are_refused() -> None:
    timeline = random_planner(random.Random(1)).timeline()
    for sample in (-1, timeline.num_samples):
        with pytest.raises(IndexError, match="leave the stream"):
            timeline.locate(np.array([0, sample]))


def test_lookup_far_into_a_long_run() -> None:
    config = DataConfig(
        sources={"a": SourceConfig("a"), "b": SourceConfig("b")},
        stages=[StageConfig("one", 10**15, {"a": 0.3, "b": 0.7})],
        seq_length=8192,
    )
    timeline = Planner(config, [Slot("a", None, "", None), Slot("b", None, "", None)], {}).timeline()
    assert timeline.num_samples > 10**11
    last = timeline.num_samples - 1
    component, index = timeline.locate(np.array([last]))
    assert timeline.cursors(last)[component[0]] == index[0]
    assert timeline.cursors(timeline.num_samples).sum() == timeline.num_samples
