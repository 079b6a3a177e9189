"""The data section: exact shares, the shipped recipe, and every contradiction with its field."""

from __future__ import annotations

from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import jsonargparse
import pytest
import yaml

from megatron_synE.config.data import (
    AdjustmentConfig,
    DataConfig,
    SchedulePoint,
    SourceConfig,
    StageConfig,
    exact,
)

EXAMPLES = Path(__file__).parents[3] / "examples"

STAGE_1 = {
    "web_zh": ".14", "web_en": ".32", "encyclopedia_zh": ".01", "encyclopedia_en": ".04", "book_zh": ".04",
    "book_en": ".12", "qa_forum_zh": ".01", "qa_forum_en": ".04", "paper_en": ".08", "math_en": ".08", "code_en": ".12",
}  # fmt: skip
ZH = {"web_zh": ".70", "encyclopedia_zh": ".05", "book_zh": ".20", "qa_forum_zh": ".05"}
EN = {
    "web_en": ".40", "encyclopedia_en": ".05", "book_en": ".15", "qa_forum_en": ".05", "paper_en": ".10",
    "math_en": ".10", "code_en": ".15",
}  # fmt: skip


def shipped(name: str) -> DataConfig:
    """The data section of a shipped file, parsed as the entry parses it."""
    content = yaml.safe_load((EXAMPLES / name).read_text(encoding="utf-8"))["data"]
    parser = jsonargparse.ArgumentParser()
    parser.add_class_arguments(DataConfig, "data")
    return parser.instantiate_classes(parser.parse_object({"data": content})).data


def weights(config: DataConfig, stage: int) -> dict[str, Fraction]:
    return {name: weight for name, weight in config.stage_weights(config.stages[stage]).items() if weight}


@pytest.mark.parametrize("name", ["llama3_8b/stage1.yaml", "llama3_8b/stage2.yaml"])
def test_the_shipped_recipe_is_the_papers_exactly(name: str) -> None:
    config = shipped(name)
    assert config.problems() == []
    assert weights(config, 0) == {source: Fraction(share) for source, share in STAGE_1.items()}
    assert config.stages[0].tokens == 92_500_000_000
    assert all(config.sources[source].order == "perplexity_ascending" for source in ZH)
    assert [source for source, fields in config.sources.items() if fields.topics] == ["web_zh", "web_en"]
    assert config.adjustment.strategy == "topic_perplexity" and config.adjustment.alpha == 0.2


def test_stage_2_of_the_shipped_recipe() -> None:
    config = shipped("llama3_8b/stage2.yaml")
    expected = {source: Fraction(share) * Fraction(1, 10) for source, share in ZH.items()}
    expected |= {source: Fraction(share) * Fraction(7, 10) for source, share in EN.items()}
    expected["synthesis_en"] = Fraction(2, 10)
    assert weights(config, 1) == expected and sum(expected.values()) == 1
    assert config.stages[1].tokens == 7_500_000_000
    assert set(config.stages[1].orders) == set(ZH) and not config.stages[1].adjust


def test_shares_are_the_decimals_written() -> None:
    assert exact(0.1) + exact(0.2) == exact(0.3) == Fraction(3, 10)
    assert exact("1/3") * 3 == 1 and exact(" 0.25 ") == Fraction(1, 4) and exact(1e-5) == Fraction(1, 100_000)
    for bad in ("a tenth", "1/0", float("nan"), float("inf")):
        with pytest.raises(ValueError, match="is not a number"):
            exact(bad)


def config(**fields) -> DataConfig:
    """Two sources and one stage; a good config unless `fields` spoil it."""
    sources = {"a": SourceConfig("a", "zh", topics=True), "b": SourceConfig("b", "en")}
    good = DataConfig(sources=sources, stages=[StageConfig("one", 10**6, {"a": 0.5, "b": 0.5})])
    return replace(good, **fields)


def stage(**fields) -> list[StageConfig]:
    return [replace(StageConfig("one", 10**6, {"a": 0.5, "b": 0.5}), **fields)]


def measured(**fields) -> AdjustmentConfig:
    return AdjustmentConfig("topic_perplexity", **{"interval_tokens": 10, **fields})


def point(at_tokens: int, **shares) -> SchedulePoint:
    return SchedulePoint(at_tokens, {"a": shares or {"law": 1}})


def test_a_good_config_has_no_problem() -> None:
    assert config().problems() == []
    assert config(adjustment=measured()).problems() == []
    assert config(adjustment=AdjustmentConfig("schedule", schedule=[point(5), point(9)])).problems() == []


BAD: list[tuple[dict, str]] = [
    ({"stages": stage(weights={"a": 1.2, "b": -0.2})}, "data.stages.one.weights.b: -0.2 is negative"),
    ({"stages": stage(weights={"a": 0.5, "b": 0.4})}, "data.stages.one.weights: the shares sum to 0.9, not 1"),
    ({"stages": stage(weights={"a": 0.5, "c": 0.5})}, "data.stages.one.weights: unknown source 'c'; sources are a, b"),
    ({"stages": stage(weights={"a": "half", "b": 0.5})}, "data.stages.one.weights.a: 'half' is not a number"),
    ({"stages": stage(weights=None)}, "data.stages.one: give exactly one of weights and language_shares"),
    ({"stages": stage(language_shares={"zh": 1})}, "data.stages.one: give exactly one"),
    ({"stages": stage(weights=None, language_shares={"zh": 1})}, "one.language_shares: no data.source_shares.zh"),
    ({"stages": stage(tokens=0)}, "data.stages.one.tokens: 0 is less than a sample"),
    ({"stages": stage() + stage()}, "data.stages: two stages are called 'one'"),
    ({"stages": []}, "data.stages: no stage"),
    ({"stages": stage(orders={"c": "stored"})}, "data.stages.one.orders: unknown source 'c'"),
    ({"stages": stage(topic_shares={"b": {"law": 1}})}, "data.stages.one.topic_shares: 'b' is not a source with"),
    ({"stages": stage(topic_shares={"a": {"law": 0.5}})}, "data.stages.one.topic_shares.a: the shares sum to 0.5"),
    ({"source_shares": {"zh": {"b": 1}}}, "data.source_shares.zh: source 'b' has language 'en'"),
    ({"source_shares": {"zh": {"a": 0.9}}}, "data.source_shares.zh: the shares sum to 0.9"),
    ({"sources": {}}, "data.sources: no source"),
    ({"sources": {"a/x": SourceConfig("a")}}, "data.sources.a/x: a source's name"),
    ({"sources": {"a": SourceConfig("")}}, "data.sources.a.prefix: empty"),
    ({"sources": {"a": SourceConfig("a", max_epochs=0)}}, "data.sources.a.max_epochs: 0 is no positive number"),
    ({"sources": {"a": SourceConfig("a", heldout_fraction=1)}}, "data.sources.a.heldout_fraction: 1 is not in [0, 1)"),
    ({"sources": {"a": SourceConfig("a", topic_shares="uniform")}}, "data.sources.a.topic_shares, unlabelled_topic"),
    ({"heldout_fraction": -0.1}, "data.heldout_fraction: -0.1"),
    ({"sources": {"a": SourceConfig("a", max_epochs=float("nan"))}}, "data.sources.a.max_epochs: nan is no positive"),
    ({"seq_length": 0}, "data.seq_length: 0 is not positive"),
    ({"heldout_samples": 0}, "data.heldout_samples: 0 is not positive"),
    ({"seed": -1}, "data.seed: -1"),
    ({"adjustment": measured(interval_tokens=0)}, "data.adjustment.interval_tokens: 0"),
    ({"adjustment": measured(alpha=-1)}, "data.adjustment.alpha: -1 is negative"),
    ({"adjustment": measured(alpha=1.0)}, "alpha × w is 1 for (default)"),
    ({"adjustment": measured(topic_weights={"law": 6})}, "alpha × w is 1.2 for law"),
    ({"adjustment": measured(floor=0.6)}, "data.adjustment.floor, cap: 0.6 and 0.5"),
    ({"adjustment": AdjustmentConfig("schedule", schedule=[point(10**6)])}, "[0].at_tokens: 1000000 lies behind"),
    ({"adjustment": AdjustmentConfig("schedule")}, "data.adjustment.schedule: 0 points with schedule"),
    ({"adjustment": AdjustmentConfig(schedule=[point(1)])}, "data.adjustment.schedule: 1 points with static"),
    ({"adjustment": AdjustmentConfig("schedule", schedule=[point(9), point(5)])}, "at_tokens are [9, 5]"),
    ({"adjustment": AdjustmentConfig("schedule", schedule=[point(5, law=2)])}, "[0].topic_shares.a: the shares sum"),
]  # fmt: skip


@pytest.mark.parametrize(("fields", "message"), BAD, ids=[message[:60] for _, message in BAD])
def test_contradictions_name_the_field(fields: dict, message: str) -> None:
    assert any(message in problem for problem in config(**fields).problems()), config(**fields).problems()


def test_moving_topics_needs_topics() -> None:
    plain = config(sources={"a": SourceConfig("a"), "b": SourceConfig("b")}, adjustment=measured())
    assert any("no source has `topics: true`" in problem for problem in plain.problems())


def test_all_problems_come_at_once() -> None:
    assert len(config(seq_length=0, seed=-1, stages=stage(weights={"c": 2})).problems()) >= 4
