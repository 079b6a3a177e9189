"""The stream as the trainer sees it: layouts, resume, changes of plan, live adjustment."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Callable
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest

from megatron_synE.config.data import AdjustmentConfig, DataConfig, SourceConfig, StageConfig
from megatron_synE.corpus.annotations import write_annotation
from megatron_synE.corpus.indexed import IndexedCorpus
from megatron_synE.data import Batch, DataStream, preflight
from tests.helpers.corpora import random_documents, write_corpus

TOPICS = ("law", "history", "others")
SEQ_LENGTH = 16


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> DataConfig:
    """Two languages, topics in both web sources, Chinese by perplexity, two stages."""
    folder, rng = tmp_path_factory.mktemp("corpora"), np.random.default_rng(0)
    prefixes = {}
    for name in ("web_zh", "web_en", "book_en"):
        documents = random_documents(rng, 400)
        topics, perplexity = rng.integers(0, 3, 400), rng.uniform(1, 50, 400)
        prefixes[name] = write_corpus(folder / name, documents, topics=topics, names=TOPICS, perplexity=perplexity)
    return DataConfig(
        sources={
            "web_zh": SourceConfig(prefixes["web_zh"], "zh", "perplexity_ascending", topics=True),
            "web_en": SourceConfig(prefixes["web_en"], "en", topics=True, topic_shares="uniform"),
            "book_en": SourceConfig(prefixes["book_en"], "en"),
        },
        stages=[
            StageConfig("adapt", 300 * SEQ_LENGTH, language_shares={"zh": 0.2, "en": 0.8}),
            StageConfig("enhance", 200 * SEQ_LENGTH, {"web_zh": 0.5, "book_en": 0.5}, orders={"web_zh": "shuffled"}),
        ],
        source_shares={"zh": {"web_zh": 1}, "en": {"web_en": 0.7, "book_en": 0.3}},
        seq_length=SEQ_LENGTH,
        heldout_fraction=0.1,
        adjustment=AdjustmentConfig("topic_perplexity", interval_tokens=100 * SEQ_LENGTH, floor=0.05, cap=0.9),
    )


def through_json(state: dict) -> dict:
    return json.loads(json.dumps(state))


def measured(stream: DataStream, **changed: float) -> dict[str, float]:
    """A perplexity for each component; names as web_zh__law."""
    return {name: changed.get(name.replace("/", "__"), 10.0) for name in stream.component_names}


def run_layout(stream: DataStream, layout: Callable[[int], list[range]], steps: range) -> list[np.ndarray]:
    """The rows of each step, read by ranks and micro-batches as `layout` cuts the step, in global order."""
    rows = []
    for step in steps:
        parts = [stream.batch(list(part)).tokens_BS for part in layout(step)]
        rows.append(np.concatenate(parts))
    return rows


def test_the_order_is_the_same_at_any_layout(config: DataConfig) -> None:
    def layout(data_parallel_size: int, micro_batch_size: int) -> Callable[[int], list[range]]:
        per_rank = 8 // data_parallel_size
        return lambda step: [
            range(first, first + micro_batch_size)
            for rank in range(data_parallel_size)
            for first in range(step * 8 + rank * per_rank, step * 8 + (rank + 1) * per_rank, micro_batch_size)
        ]

    expected = run_layout(DataStream.build(config), layout(1, 8), range(30, 50))
    for data_parallel_size, micro_batch_size in ((1, 1), (2, 2), (2, 4), (4, 1), (4, 2), (8, 1)):
        found = run_layout(DataStream.build(config), layout(data_parallel_size, micro_batch_size), range(30, 50))
        assert all((a == b).all() for a, b in zip(expected, found, strict=True))


def test_resume_in_the_middle_of_a_segment_reads_the_same(config: DataConfig) -> None:
    stream = DataStream.build(config)
    stream.adjust(0, measured(stream))
    stream.adjust(100, measured(stream, web_zh__law=20.0))
    state = through_json(stream.state_dict())
    resumed = DataStream.build(config, state=state)
    samples = np.arange(stream.num_samples)
    assert all((a == b).all() for a, b in zip(stream.locate(samples), resumed.locate(samples), strict=True))
    assert (stream.batch(samples[130:500]).tokens_BS == resumed.batch(samples[130:500]).tokens_BS).all()
    assert through_json(resumed.state_dict()) == state
    for both in (stream, resumed):
        both.adjust(200, measured(both, web_en__history=30.0))
    assert through_json(stream.state_dict()) == through_json(resumed.state_dict())


def test_training_never_reads_a_heldout_document(config: DataConfig) -> None:
    stream = DataStream.build(replace(config, isolate_documents=True))
    seen: dict[str, set[tuple[int, ...]]] = {name: set() for name in stream.component_names}
    for number in range(stream.num_samples):
        batch = stream.batch([number])
        seen[stream.component_names[batch.component_B[0]]] |= pieces(batch)
    for name, heldout in stream.heldout().items():
        order = heldout.documents.order
        documents = {tuple(heldout.documents.corpus.document(d).tolist()) for d in order}
        assert documents and documents.isdisjoint(seen[name])


def pieces(batch: Batch) -> set[tuple[int, ...]]:
    assert batch.cu_seqlens is not None
    tokens = batch.tokens_BS[0].tolist()
    return {tuple(tokens[a:b]) for a, b in zip(batch.cu_seqlens[:-1], batch.cu_seqlens[1:], strict=True)}


def test_language_ratio_never_moves_while_topics_do(config: DataConfig) -> None:
    stream, rng = DataStream.build(config), np.random.default_rng(5)
    shares: list[tuple[int, dict[str, float]]] = []
    while (sample := stream.next_adjustment_sample(shares[-1][0] + 1 if shares else 0)) is not None and sample < 300:
        stream.adjust(sample, {name: float(rng.uniform(5, 50)) for name in stream.component_names})
        numerators = stream.timeline.at(sample).numerators
        by_source: dict[str, Fraction] = {}
        for name, count in zip(stream.component_names, numerators, strict=True):
            source = name.split("/")[0]
            by_source[source] = by_source.get(source, Fraction(0)) + Fraction(count, sum(numerators))
        assert by_source == {"web_zh": Fraction(1, 5), "web_en": Fraction(14, 25), "book_en": Fraction(6, 25)}
        shares.append((sample, stream.shares(sample)))
    assert [sample for sample, _ in shares] == [0, 100, 200]
    assert len({tuple(values.values()) for _, values in shares}) == 3


def test_a_rising_topic_gets_more_and_the_decision_is_recorded(config: DataConfig) -> None:
    stream = DataStream.build(config)
    assert stream.adjust(0, measured(stream)) is None
    before = stream.shares(150)
    decision = stream.adjust(104, measured(stream, web_zh__law=11.0, web_zh__others=8.0))
    assert decision is not None and decision.changed and decision.at_tokens == 104 * SEQ_LENGTH
    assert decision.inputs["delta"]["web_zh/law"] == 0.5 and decision.inputs["factor"]["web_zh/others"] == 0.8
    after = stream.shares(150)
    assert after["web_zh/law"] > before["web_zh/law"] and after["web_zh/others"] < before["web_zh/others"]
    assert {n: s for n, s in after.items() if "zh" not in n} == {n: s for n, s in before.items() if "zh" not in n}
    assert stream.shares(103) == before and stream.timeline.at(104).reason == "adjustment"
    assert stream.state_dict()["decisions"][1]["shares_after"] == decision.shares_after


def test_when_measurements_are_due(config: DataConfig) -> None:
    first, second = config.stages
    stages = [replace(first, adjust=False), second, replace(second, name="third", adjust=False)]
    stream = DataStream.build(replace(config, stages=stages))
    assert stream.next_adjustment_sample(0) == 300
    stream.adjust(304, measured(stream))
    assert stream.next_adjustment_sample(304) == stream.next_adjustment_sample(305) == 400
    assert stream.next_adjustment_sample(404) == 404
    stream.adjust(404, measured(stream))
    assert stream.next_adjustment_sample(405) is None
    assert DataStream.build(replace(config, adjustment=AdjustmentConfig())).next_adjustment_sample(0) is None


def test_a_source_that_joins_later_is_first_measured_then_moved(config: DataConfig) -> None:
    fewer = {name: source for name, source in config.sources.items() if name != "web_zh"}
    stages = [StageConfig("adapt", 500 * SEQ_LENGTH, {"web_en": 0.5, "book_en": 0.5})]
    before = DataStream.build(replace(config, sources=fewer, stages=stages, source_shares={}))
    before.adjust(0, measured(before))
    stream = DataStream.build(config, state=through_json(before.state_dict(100)))
    start = stream.shares(100)
    stream.adjust(100, measured(stream, web_zh__law=20.0, web_en__law=20.0))
    middle = stream.shares(100)
    assert middle["web_zh/law"] == start["web_zh/law"] and middle["web_en/law"] > start["web_en/law"]
    stream.adjust(200, measured(stream, web_zh__law=30.0))
    assert stream.shares(200)["web_zh/law"] > middle["web_zh/law"]


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -1.0, None])
def test_a_perplexity_that_is_no_number_is_refused(config: DataConfig, value: float | None) -> None:
    stream = DataStream.build(config)
    perplexity = measured(stream)
    perplexity["web_en/law"] = value  # type: ignore[assignment]
    with pytest.raises(ValueError, match="perplexity of web_en/law"):
        stream.adjust(0, perplexity)
    assert stream.state_dict()["decisions"] == []


@pytest.mark.parametrize("huge", [8e307, sys.float_info.max])
def test_perplexities_of_any_finite_size_are_compared(config: DataConfig, huge: float) -> None:
    """A model that falls apart in a topic and recovers."""
    stream, small = DataStream.build(config), DataStream.build(config)
    for sample, value, like in ((0, 10.0, 10.0), (100, huge, 30.0), (200, 1.0, 10.0), (300, huge, 30.0)):
        stream.adjust(sample, measured(stream, web_zh__law=value))
        small.adjust(sample, measured(small, web_zh__law=like))
    assert all(math.isfinite(share) for sample in (100, 200, 300) for share in stream.shares(sample).values())
    assert stream.shares(150) == small.shares(150)
    assert stream.shares(150)["web_zh/law"] > stream.shares(50)["web_zh/law"]
    resumed = DataStream.build(config, state=json.loads(json.dumps(stream.state_dict(), allow_nan=False)))
    assert resumed.state_dict() == stream.state_dict()


def test_a_changed_plan_begins_where_the_checkpoint_stands(config: DataConfig) -> None:
    old = DataStream.build(config)
    stages = [replace(config.stages[0], language_shares={"zh": 0.5, "en": 0.5}), config.stages[1]]
    changed = replace(config, stages=stages)
    with pytest.raises(ValueError, match="samples consumed"):
        DataStream.build(changed, state=through_json(old.state_dict()))
    new = DataStream.build(changed, state=through_json(old.state_dict(120)))
    assert new.timeline.at(120).reason == "config" and new.timeline.at(120).start == 120
    samples = np.arange(120)
    assert all((a == b).all() for a, b in zip(old.locate(samples), new.locate(samples), strict=True))
    assert new.shares(119) == old.shares(119) and new.shares(120)["book_en"] == 0.15
    component, index = new.locate(np.arange(new.num_samples))
    for c in range(len(new.component_names)):
        assert (index[component == c] == np.arange((component == c).sum())).all()


def test_a_new_source_may_join_and_a_used_one_may_not_leave(config: DataConfig, tmp_path: Path) -> None:
    state = through_json(DataStream.build(config).state_dict(100))
    prefix = write_corpus(tmp_path / "new", random_documents(np.random.default_rng(9), 100))
    sources = {"synthesis": SourceConfig(prefix, "en"), **config.sources}
    stages = [config.stages[0], StageConfig("enhance", 200 * SEQ_LENGTH, {"synthesis": 1})]
    joined = DataStream.build(replace(config, sources=sources, stages=stages), state=state)
    assert joined.shares(50)["synthesis"] == 0 and joined.shares(400)["synthesis"] == 1
    fewer = {name: source for name, source in config.sources.items() if name != "book_en"}
    stages = [StageConfig("adapt", 500 * SEQ_LENGTH, {"web_zh": 1})]
    with pytest.raises(ValueError, match="'book_en' of the checkpoint is gone"):
        DataStream.build(replace(config, sources=fewer, stages=stages, source_shares={}), state=state)


def test_the_order_of_sources_in_the_file_does_not_matter(config: DataConfig) -> None:
    stream = DataStream.build(config)
    turned = DataStream.build(
        replace(config, sources=dict(reversed(config.sources.items()))), state=through_json(stream.state_dict())
    )
    assert turned.component_names == stream.component_names
    samples = np.arange(stream.num_samples)
    assert all((a == b).all() for a, b in zip(stream.locate(samples), turned.locate(samples), strict=True))


def test_states_that_do_not_fit_are_refused_with_all_reasons(config: DataConfig) -> None:
    state = through_json(DataStream.build(config).state_dict())
    other = replace(config, seq_length=32, seed=7, heldout_fraction=0.2)
    with pytest.raises(ValueError) as error:
        DataStream.build(other, state=state)
    for field in ("data.seq_length", "data.seed", "data.sources.book_en"):
        assert field in str(error.value)
    with pytest.raises(ValueError, match="stream state: format_version is None, not 1"):
        DataStream.build(config, state={})
    with pytest.raises(ValueError, match="stream state: components is missing"):
        DataStream.build(config, state={"format_version": 1})


@pytest.fixture
def by_perplexity(tmp_path: Path) -> DataConfig:
    """One source by perplexity in its first stage only, two documents without a score."""
    rng = np.random.default_rng(1)
    scores = [-1.0, -1.0, *rng.uniform(1, 50, 298)]
    prefix = write_corpus(tmp_path / "web", random_documents(rng, 300), perplexity=scores)
    sources = {"web": SourceConfig(prefix, order="perplexity_ascending", unscored="last")}
    stages = [
        StageConfig("one", 100 * SEQ_LENGTH, {"web": 1}),
        StageConfig("two", 100 * SEQ_LENGTH, {"web": 1}, orders={"web": "shuffled"}),
        StageConfig("three", 100 * SEQ_LENGTH, {"web": 1}, orders={"web": "perplexity_descending"}),
    ]
    return DataConfig(sources, stages, seq_length=SEQ_LENGTH, heldout_fraction=0.1)


def annotated_anew(config: DataConfig) -> None:
    """The same corpus, with other perplexities."""
    corpus = IndexedCorpus(config.sources["web"].prefix)
    values = np.random.default_rng(8).uniform(1, 50, corpus.num_documents).astype(np.float32)
    write_annotation(corpus.prefix, "perplexity", values, corpus.fingerprint, {"name": "another"})


@pytest.mark.parametrize("sample", [60, 150, None])
def test_a_perplexity_annotated_anew_is_refused_once_it_was_used(by_perplexity: DataConfig, sample: int | None) -> None:
    state = through_json(DataStream.build(by_perplexity).state_dict(sample))
    assert "order" in state["components"][0]
    assert through_json(DataStream.build(by_perplexity, state=state).state_dict(sample)) == state
    annotated_anew(by_perplexity)
    with pytest.raises(ValueError, match=r"data\.sources\.web: .*web\.perplexity\.npy was annotated anew"):
        DataStream.build(by_perplexity, state=state)


def test_the_place_of_documents_without_a_score_is_part_of_the_order(by_perplexity: DataConfig) -> None:
    state = through_json(DataStream.build(by_perplexity).state_dict(60))
    for unscored, fits in (("error", True), ("first", False)):
        source = replace(by_perplexity.sources["web"], unscored=unscored)
        changed = replace(by_perplexity, sources={"web": source})
        if fits:
            DataStream.build(changed, state=state)
        else:
            with pytest.raises(ValueError, match="`unscored` changed"):
                DataStream.build(changed, state=state)


def test_perplexities_that_ordered_nothing_yet_may_change(by_perplexity: DataConfig) -> None:
    stages = [replace(by_perplexity.stages[0], orders={"web": "stored"}), *by_perplexity.stages[1:]]
    config = replace(by_perplexity, stages=stages)
    first = DataStream.build(config)
    state = through_json(first.state_dict(150))
    assert all("order" not in through_json(first.state_dict(n))["components"][0] for n in (0, 100, 200))
    assert "order" in through_json(first.state_dict(201))["components"][0]
    annotated_anew(by_perplexity)
    second = DataStream.build(config, state=state)
    samples = range(200)
    assert (first.batch(samples).tokens_BS == second.batch(samples).tokens_BS).all()


def test_states_without_the_order_of_perplexities_stay_readable(by_perplexity: DataConfig) -> None:
    state = through_json(DataStream.build(by_perplexity).state_dict(60))
    del state["components"][0]["order"]
    assert "order" in DataStream.build(by_perplexity, state=state).state_dict(60)["components"][0]


def test_stage_order_overrides_apply_to_what_is_left(config: DataConfig) -> None:
    stream = DataStream.build(config)
    web = next(component for component in stream.components if component.name == "web_zh/law")
    cursor = int(stream.timeline.cursors(300)[stream.component_names.index("web_zh/law")])
    assert web.chain == (("perplexity_ascending", 0), ("shuffled", cursor * SEQ_LENGTH))


def test_an_exhausted_component_stops_the_run_when_it_is_reached(config: DataConfig) -> None:
    sources = {**config.sources, "book_en": replace(config.sources["book_en"], max_epochs=0.1)}
    stream = DataStream.build(replace(config, sources=sources))
    stream.batch(range(50))
    with pytest.raises(ValueError, match=r"book_en has used up its 0\.1 epochs at sample \d+.*max_epochs"):
        stream.batch(range(stream.num_samples - 50, stream.num_samples))


def test_a_cap_lowered_below_what_was_read_counts_as_exhausted(config: DataConfig) -> None:
    """Re-weighted from the checkpoint on; raised again, the component goes on where it stood."""
    config = replace(config, exhausted="reweight")
    first = DataStream.build(config)
    lowered = DataStream.build(capped(config, 0.01), state=through_json(first.state_dict(90)))
    place = lowered.component_names.index("book_en")
    assert lowered.shares(89) == first.shares(89) and lowered.shares(90)["book_en"] == 0
    assert lowered.timeline.cursors(90)[place] == lowered.timeline.cursors(500)[place] == 21
    lowered.batch(range(90, 500))
    raised = DataStream.build(config, state=through_json(lowered.state_dict(200)))
    component, index = raised.locate(np.arange(500))
    assert (index[component == place] == np.arange(raised.timeline.cursors(500)[place])).all()
    assert raised.timeline.cursors(500)[place] > 21
    assert preflight(capped(config, 0.01), through_json(first.state_dict(90))) == []


def test_a_cap_lowered_below_what_was_read_is_an_error_where_it_is_read_on(config: DataConfig) -> None:
    state = through_json(DataStream.build(config).state_dict(90))
    (line,) = preflight(capped(config, 0.01), state)[:1]
    assert "data.sources.book_en.max_epochs: 0.01" in line
    done = replace(config, stages=[config.stages[0], StageConfig("rest", 200 * SEQ_LENGTH, {"web_zh": 1})])
    state = through_json(DataStream.build(done).state_dict(300))
    assert preflight(capped(done, 0.01), state) == []


def capped(config: DataConfig, max_epochs: float) -> DataConfig:
    book = replace(config.sources["book_en"], max_epochs=max_epochs)
    return replace(config, sources={**config.sources, "book_en": book})


def test_numpy_fallback_gives_the_same_stream(
    config: DataConfig, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    from megatron_synE.data import fallback, native

    expected = DataStream.build(config).batch(range(250, 350))
    monkeypatch.setattr(native, "implementation", lambda: fallback)
    found = DataStream.build(replace(config, cache_dir=str(tmp_path / "cache"))).batch(range(250, 350))
    assert (expected.tokens_BS == found.tokens_BS).all() and (expected.component_B == found.component_B).all()
