"""Bad corpora and annotations: one list that names file and field."""

from __future__ import annotations

import math
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from megatron_synE.config.data import AdjustmentConfig, DataConfig, SchedulePoint, SourceConfig, StageConfig
from megatron_synE.data import preflight
from megatron_synE.data.components import threshold_of
from megatron_synE.data.heldout import smallest_heldout_fraction
from tests.helpers.corpora import random_documents, write_corpus

NAMES = ("law", "history", "empty")


def one_source(prefix: str, tokens: int = 640, **fields) -> DataConfig:
    sources, stages = {"web": SourceConfig(prefix, **fields)}, [StageConfig("only", tokens, {"web": 1})]
    config = DataConfig(sources=sources, stages=stages, seq_length=16, heldout_fraction=0.1)
    assert config.problems() == []
    return config


@pytest.fixture
def prefix(tmp_path: Path) -> str:
    """200 documents in two of three topics."""
    rng = np.random.default_rng(0)
    perplexity = rng.uniform(1, 9, 200)
    topics = rng.integers(0, 2, 200)
    return write_corpus(
        tmp_path / "web", random_documents(rng, 200), topics=topics, names=NAMES, perplexity=perplexity
    )


def test_a_good_config_has_no_problem(prefix: str) -> None:
    assert preflight(one_source(prefix, order="perplexity_ascending", topics=True)) == []


def test_missing_corpora_are_all_reported(tmp_path: Path, prefix: str) -> None:
    config = one_source(prefix)
    sources = {**config.sources, **{name: SourceConfig(str(tmp_path / name)) for name in ("no_zh", "no_en")}}
    found = preflight(replace(config, sources=sources))
    assert len(found) == 2
    for name, line in zip(("no_en", "no_zh"), found, strict=True):
        assert f"data.sources.{name}" in line and f"{name}.idx" in line


def test_missing_annotation(tmp_path: Path) -> None:
    plain = write_corpus(tmp_path / "plain", random_documents(np.random.default_rng(1), 50))
    (line,) = preflight(one_source(plain, topics=True))
    assert "plain.topic.json" in line and "annotate_corpus" in line
    (line,) = preflight(one_source(plain, order="perplexity_descending"))
    assert "plain.perplexity.json" in line


def test_stale_annotation(prefix: str) -> None:
    write_corpus(Path(prefix), random_documents(np.random.default_rng(2), 200))
    (line,) = preflight(one_source(prefix, topics=True))
    assert "web.topic.json" in line and "fingerprint" in line


def test_nan_perplexity(prefix: str) -> None:
    values = np.load(f"{prefix}.perplexity.npy")
    values[17] = np.nan
    np.save(f"{prefix}.perplexity.npy", values)
    (line,) = preflight(one_source(prefix, order="perplexity_ascending"))
    assert "web.perplexity.npy" in line and "document 17" in line and "nan" in line


def test_documents_without_score_or_label(tmp_path: Path) -> None:
    documents = random_documents(np.random.default_rng(3), 60)
    prefix = write_corpus(
        tmp_path / "some", documents, topics=[-1] * 7 + [0] * 53, names=NAMES, perplexity=[-1.0] * 2 + [3.0] * 58
    )
    found = preflight(one_source(prefix, topics=True, order="perplexity_ascending"))
    assert any("annotation topic: 7 documents have none (document 0, 1, 2, 3, 4 …)" in line for line in found)
    assert any("annotation perplexity: 2 documents have none" in line and "unscored" in line for line in found)
    assert preflight(one_source(prefix, topics=True, unlabelled_topic="law")) == []
    assert "unlabelled_topic" in preflight(one_source(prefix, topics=True, unlabelled_topic="sport"))[0]
    assert preflight(one_source(prefix, order="perplexity_ascending", unscored="last")) == []


def test_a_corpus_shorter_than_one_sample(tmp_path: Path) -> None:
    prefix = write_corpus(tmp_path / "short", [[1] * 16])
    (line,) = preflight(replace(one_source(prefix), heldout_fraction=0.0))
    assert "short: 16 tokens" in line and "one sample of 16" in line


def test_a_topic_without_documents(prefix: str) -> None:
    shares = {"law": 0.5, "history": 0.4, "empty": 0.1}
    (line,) = preflight(one_source(prefix, topics=True, topic_shares=shares))
    assert "data.sources.web.topic_shares.empty" in line and prefix in line
    assert preflight(one_source(prefix, topics=True, topic_shares="uniform")) == []
    (line,) = preflight(one_source(prefix, topics=True, topic_shares={"law": 1}))
    assert "no share for 'history'" in line
    found = preflight(one_source(prefix, topics=True, topic_shares={"law": 0.5, "history": 0.4, "sport": 0.1}))
    assert "unknown topic 'sport'" in found[0]


def test_topic_shares_of_stages_and_schedules(prefix: str) -> None:
    config = one_source(prefix, topics=True)
    stage = replace(config.stages[0], topic_shares={"web": {"law": 0.5, "history": 0.4, "empty": 0.1}})
    point = SchedulePoint(100, {"web": {"law": 0.5, "sport": 0.5}})
    found = preflight(replace(config, stages=[stage], adjustment=AdjustmentConfig("schedule", schedule=[point])))
    assert len(found) == 3 and "no share for 'history'" in found[2]
    assert "data.stages.only.topic_shares.web.empty" in found[0]
    assert "data.adjustment.schedule[0].topic_shares.web" in found[1] and "sport" in found[1]


def test_topics_that_cannot_be_measured(prefix: str) -> None:
    config = replace(one_source(prefix, topics=True), heldout_fraction=0.0)
    config = replace(config, adjustment=AdjustmentConfig("topic_perplexity", interval_tokens=160, cap=1.0))
    (line,) = preflight(config)
    assert "web: topics without a held-out document" in line and "law (" in line and "history (" in line
    enough = re.search(r"data\.sources\.web\.heldout_fraction to ([0-9.]+) \(the smallest", line)
    assert enough is not None
    assert preflight(replace(config, heldout_fraction=float(enough[1]))) == []
    digits = len(enough[1].lstrip("0.").replace(".", ""))
    less = float(enough[1]) * (1 - 10 ** (1 - digits))
    assert preflight(replace(config, heldout_fraction=less)) != [], "it is the smallest of so many digits"


def test_the_smallest_fraction_is_exact() -> None:
    hashes = np.random.default_rng(0).integers(0, 2**64, 500, dtype=np.uint64)
    for one in (*hashes, np.uint64(0), np.uint64(2**53 + 1), np.uint64(2**63)):
        fraction = smallest_heldout_fraction(np.array([one, np.uint64(2**64 - 1)]))
        assert fraction is not None
        assert int(one) < threshold_of(fraction) and int(one) >= threshold_of(math.nextafter(fraction, 0.0))
    assert smallest_heldout_fraction(np.array([2**64 - 1], np.uint64)) is None
    assert smallest_heldout_fraction(np.empty(0, np.uint64)) is None


def test_no_fraction_holds_out_and_trains_a_topic_of_one_document(tmp_path: Path) -> None:
    documents = random_documents(np.random.default_rng(3), 60, low=20)
    prefix = write_corpus(tmp_path / "web", documents, topics=[0] * 59 + [1], names=NAMES)
    adjustment = AdjustmentConfig("topic_perplexity", interval_tokens=160, cap=1.0)
    config = replace(one_source(prefix, topics=True), adjustment=adjustment, heldout_fraction=0.5)
    (line,) = preflight(config)
    assert "history (1)" in line and "no held-out fraction leaves" in line and "min_documents" in line


def test_bounds_that_the_number_of_topics_makes_impossible(prefix: str) -> None:
    config = one_source(prefix, topics=True)
    tight = AdjustmentConfig("topic_perplexity", interval_tokens=160, cap=0.4)
    (line,) = preflight(replace(config, adjustment=tight))
    assert "data.adjustment.floor, cap" in line and "web" in line


def test_a_plan_that_passes_the_cap(prefix: str) -> None:
    (line,) = preflight(one_source(prefix, tokens=100_000, max_epochs=2))
    assert "data.sources.web.max_epochs" in line and "stage only" in line
    assert preflight(one_source(prefix, tokens=100_000)) == []
    reweight = replace(one_source(prefix, tokens=100_000, max_epochs=2), exhausted="reweight")
    assert "every source has reached its max_epochs" in preflight(reweight)[0]
