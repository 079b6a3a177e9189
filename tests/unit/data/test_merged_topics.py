"""Rare topics are read as one: which documents, which shares, what a resume says."""

from __future__ import annotations

import json
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest

from megatron_synE.config.data import AdjustmentConfig, DataConfig, SchedulePoint, SourceConfig, StageConfig
from megatron_synE.corpus.annotations import NO_LABEL
from megatron_synE.data import DataStream, preflight
from megatron_synE.data.cache import digest
from megatron_synE.data.components import digest_array
from megatron_synE.data.topics import read_topics, with_merged_shares
from tests.helpers.corpora import random_documents, write_corpus

NAMES = ("law", "history", "rare", "rarer")
COUNTS = (200, 160, 12, 3)


@pytest.fixture
def prefix(tmp_path: Path) -> str:
    rng = np.random.default_rng(0)
    topics = rng.permutation(np.repeat(np.arange(4), COUNTS))
    return write_corpus(tmp_path / "web", random_documents(rng, len(topics)), topics=topics, names=NAMES)


def config_of(prefix: str, strategy: str = "topic_perplexity", **fields: object) -> DataConfig:
    config = DataConfig(
        sources={"web": SourceConfig(prefix, topics=True, **fields)},  # type: ignore[arg-type]
        stages=[StageConfig("only", 1600, {"web": 1})],
        seq_length=16,
        heldout_fraction=0.1,
        adjustment=AdjustmentConfig(strategy, interval_tokens=320, cap=1.0, floor=0.0),  # type: ignore[arg-type]
    )
    assert config.problems() == []
    return config


def documents_of(stream: DataStream, name: str) -> set[int]:
    component = stream.components[stream.component_names.index(name)]
    return {*component.epoch(0).order.tolist(), *component.heldout().order.tolist()}


def test_rare_topics_were_refused_and_are_merged(prefix: str) -> None:
    assert any("rarer" in problem for problem in preflight(config_of(prefix)))
    config = config_of(prefix, min_documents=13)
    assert preflight(config) == []
    stream = DataStream.build(config)
    assert stream.component_names == ["web/law", "web/history", "web/others"]
    labels = np.load(f"{prefix}.topic.npy")
    assert documents_of(stream, "web/others") == set(np.flatnonzero(labels >= 2).tolist())
    assert documents_of(stream, "web/law") == set(np.flatnonzero(labels == 0).tolist())
    assert stream.merged_topics == {"web": {"rare": 12, "rarer": 3}}
    (line,) = stream.describe_merges()
    assert line == "data.sources.web: read as 'others': rare (12 documents), rarer (3 documents)"


def test_they_may_go_into_a_topic_that_is_there(prefix: str) -> None:
    stream = DataStream.build(config_of(prefix, min_documents=12, others="law"))
    assert stream.component_names == ["web/law", "web/history", "web/rare"]
    assert len(documents_of(stream, "web/law")) == 203


def test_what_counts_is_readable_documents_after_unlabelled_ones_found_their_topic() -> None:
    labels = np.array([0, 0, 0, 1, 1, NO_LABEL], np.int16)
    config = SourceConfig("web", topics=True, min_documents=3)
    found = read_topics(labels, ("law", "rare"), np.ones(6, bool), config)
    assert found.names == ("law", "rare", "others") and found.numbers.tolist() == [0, 0, 0, 2, 2, NO_LABEL]
    labelled = replace(config, unlabelled_topic="rare")
    assert read_topics(labels, ("law", "rare"), np.ones(6, bool), labelled).merged == {}
    readable = np.array([True, True, False, True, True, True])
    assert read_topics(labels, ("law", "rare"), readable, labelled).merged == {"law": 2}
    new = read_topics(labels, ("law", "rare"), np.ones(6, bool), replace(config, unlabelled_topic="others"))
    assert new.numbers.tolist() == [0, 0, 0, 2, 2, 2]
    with pytest.raises(ValueError, match="unlabelled_topic: web has no topic 'sport'; topics are law, rare, others"):
        read_topics(labels, ("law", "rare"), readable, replace(config, unlabelled_topic="sport"))


def test_shares_follow_their_documents(prefix: str) -> None:
    shares = {"law": 0.5, "history": 0.3, "rare": 0.15, "rarer": 0.05}
    config = config_of(prefix, "static", min_documents=13, topic_shares=shares)
    stages = [replace(config.stages[0], topic_shares={"web": {"law": 0.25, "history": 0.5, "rare": "1/4"}})]
    points = [SchedulePoint(800, {"web": {"law": 0.4, "history": 0.4, "rarer": 0.1, "others": "1/10"}})]
    config = replace(config, stages=stages, adjustment=AdjustmentConfig("schedule", schedule=points))
    assert preflight(config) == []
    stream = DataStream.build(config)
    assert stream.planner.initial_topic_shares["web"]["others"] == Fraction(1, 5)
    assert stream.shares(0) == {"web/law": 0.25, "web/history": 0.5, "web/others": 0.25}
    assert stream.shares(60)["web/others"] == 0.2
    assert with_merged_shares(config, {}) == config


def test_shares_of_a_merged_topic_need_one_of_others(prefix: str) -> None:
    (line,) = preflight(config_of(prefix, min_documents=13, topic_shares={"law": 0.5, "history": 0.5}))
    assert "no share for 'others'" in line


def test_a_merge_is_part_of_the_order(prefix: str) -> None:
    merged, other = config_of(prefix, min_documents=13), config_of(prefix, min_documents=4)
    state = json.loads(json.dumps(DataStream.build(merged).state_dict(20)))
    assert DataStream.build(merged, state=state).component_names == ["web/law", "web/history", "web/others"]
    for changed in (other, config_of(prefix), config_of(prefix, min_documents=13, others="law")):
        with pytest.raises(ValueError, match=r"data\.sources\.web: .* their merge \(min_documents, others") as error:
            DataStream.build(changed, state=state)
        assert str(error.value).count("data.sources.web") == 1 and "is gone" not in str(error.value)
    same = config_of(prefix, min_documents=100)  # merges the same documents
    assert DataStream.build(same, state=state).component_names == ["web/law", "web/history", "web/others"]


def test_what_identified_topics_before_there_were_merges_still_does(prefix: str) -> None:
    labels = np.load(f"{prefix}.topic.npy")
    (source,) = {component.source for component in DataStream.build(config_of(prefix, min_documents=2)).components}
    assert source.topics_digest == digest([list(NAMES), digest_array(labels)])


def test_a_merge_of_nothing_is_no_change(prefix: str) -> None:
    """A checkpoint from before `min_documents` was set goes on where no topic has so few documents."""
    state = json.loads(json.dumps(DataStream.build(config_of(prefix)).state_dict(20)))
    assert DataStream.build(config_of(prefix, min_documents=2), state=state).merged_topics == {"web": {}}


def test_a_stage_that_names_a_topic_without_documents_can_be_adjusted(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    prefix = write_corpus(tmp_path / "web", random_documents(rng, 200), topics=rng.integers(0, 2, 200), names=NAMES)
    config = config_of(prefix)
    shares = {"law": 0.5, "history": 0.5, "rare": 0}
    config = replace(config, stages=[replace(config.stages[0], topic_shares={"web": shares})])
    assert preflight(config) == []
    stream = DataStream.build(config)
    stream.adjust(0, {"web/law": 3.0, "web/history": 3.0})
    assert stream.adjust(20, {"web/law": 4.0, "web/history": 3.0}) is not None


def test_uniform_shares_count_topics_with_documents(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    prefix = write_corpus(tmp_path / "web", random_documents(rng, 200), topics=rng.integers(0, 2, 200), names=NAMES)
    config = config_of(prefix, topic_shares="uniform")
    assert preflight(config) == []
    assert DataStream.build(config).shares(0) == {"web/law": 0.5, "web/history": 0.5}


@pytest.mark.parametrize(
    "fields, message",
    [
        ({"topics": True, "min_documents": -1}, "data.sources.web.min_documents: -1 is negative"),
        ({"min_documents": 5}, "data.sources.web.min_documents: given without `topics: true`"),
        ({"topics": True, "others": ""}, "data.sources.web.others: a topic's name"),
    ],
)
def test_fields_that_cannot_be(fields: dict, message: str) -> None:
    config = DataConfig({"web": SourceConfig("web", **fields)}, [StageConfig("only", 10**6, {"web": 1})])
    assert any(message in problem for problem in config.problems())
