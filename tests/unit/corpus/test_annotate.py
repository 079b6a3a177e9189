"""The annotation loop: restarts after a kill, ranks that share the parts, topics from tokens."""

import os
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from megatron_synE.corpus import annotate as annotate_module
from megatron_synE.corpus import shared_progress
from megatron_synE.corpus.annotate import annotate, corpus_tokenizer, label_topics, score_perplexity
from megatron_synE.corpus.annotations import Annotations
from megatron_synE.corpus.indexed_writer import IndexedCorpusWriter
from megatron_synE.corpus.preprocess import PreprocessOptions, preprocess
from megatron_synE.corpus.tokenizers import build_tokenizer
from tests.helpers.progress import RecordedBar, recorded_bars
from tests.unit.corpus.conftest import SAMPLE

NUM_DOCUMENTS = 23


@pytest.fixture
def prefix(tmp_path: Path) -> Path:
    with IndexedCorpusWriter(tmp_path / "c", np.uint16) as writer:
        writer.add_documents(np.arange(NUM_DOCUMENTS), np.ones(NUM_DOCUMENTS, dtype=np.int32))
        writer.finalize()
    return tmp_path / "c"


class Scorer:
    """Perplexity 10 + first token; dies after ``lives`` calls."""

    def __init__(self, lives: int = 1000) -> None:
        self.lives, self.seen = lives, []

    def info(self) -> dict[str, object]:
        return {"type": "test"}

    def score(self, documents: list[np.ndarray], on_share: Callable[[float], None]) -> np.ndarray:
        self.lives -= 1
        if self.lives < 0:
            raise KeyboardInterrupt
        self.seen += [int(document[0]) for document in documents]
        return np.array([10 + document[0] for document in documents], dtype=np.float32)


def test_a_killed_job_goes_on_where_it_stopped(prefix: Path) -> None:
    first, second, third = Scorer(lives=2), Scorer(), Scorer()
    with pytest.raises(KeyboardInterrupt):
        score_perplexity(prefix, first, part_size=5)
    assert not Annotations(prefix).has("perplexity")
    assert score_perplexity(prefix, second, part_size=5)
    assert first.seen == list(range(10)) and second.seen == list(range(10, NUM_DOCUMENTS))
    assert Annotations(prefix).get("perplexity").tolist() == [10 + i for i in range(NUM_DOCUMENTS)]
    assert score_perplexity(prefix, third, part_size=5) and third.seen == []  # done already


@pytest.mark.parametrize("order", [[0, 1, 2], [2, 0, 1]])
def test_ranks_share_the_parts(prefix: Path, order: list[int]) -> None:
    scorers = [Scorer() for _ in range(3)]
    done = [score_perplexity(prefix, scorers[rank], part_size=4, rank=rank, world_size=3) for rank in order]
    assert done == [False, False, True]
    assert sorted(sum((scorer.seen for scorer in scorers), [])) == list(range(NUM_DOCUMENTS))  # noqa: RUF017
    assert all(scorer.seen for scorer in scorers)
    assert Annotations(prefix).get("perplexity").tolist() == [10 + i for i in range(NUM_DOCUMENTS)]


def test_a_nan_stops_the_job_and_names_the_document(prefix: Path) -> None:
    def compute(documents: list[np.ndarray], on_share: Callable[[float], None]) -> np.ndarray:
        return np.array([np.nan if document[0] == 7 else 2.0 for document in documents], dtype=np.float32)

    with pytest.raises(ValueError, match="perplexity of document 7 is nan"):
        annotate(prefix, "perplexity", {}, compute, part_size=5)
    assert not Annotations(prefix).has("perplexity")


class Longest:
    """Topic 1 for texts that end in a full stop (so the end-of-document token is not part of the text)."""

    names = ("open", "closed")

    def info(self) -> dict[str, object]:
        return {"type": "test"}

    def predict(self, texts: list[str]) -> np.ndarray:
        return np.array([text.endswith(("。", ".")) for text in texts], dtype=np.int16)


def test_topics_are_given_to_the_text_without_its_end_token(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text('{"text": "完。"}\n{"text": "no end"}\n{"text": "The end."}', encoding="utf-8")
    tokenizer = build_tokenizer("auto", SAMPLE / "tokenizer")
    prefixes, _ = preprocess([path], str(tmp_path / "o"), tokenizer, PreprocessOptions(append_eod=True))
    label_topics(prefixes["text"], Longest(), corpus_tokenizer(prefixes["text"]), part_size=2)
    annotations = Annotations(prefixes["text"])
    assert [annotations.topic_names[n] for n in annotations.get("topic")] == ["closed", "open", "closed"]


def test_the_tokenizer_of_a_corpus(tmp_path: Path, prefix: Path, hf_tokenizer: Path) -> None:
    with pytest.raises(ValueError, match="does not say which tokenizer"):
        corpus_tokenizer(prefix)
    path = tmp_path / "a.jsonl"
    path.write_text('{"text": "a"}')
    tokenizer = build_tokenizer("auto", SAMPLE / "tokenizer")
    prefixes, _ = preprocess([path], str(tmp_path / "o"), tokenizer, PreprocessOptions())
    with pytest.raises(ValueError, match="made with another tokenizer"):
        corpus_tokenizer(prefixes["text"], str(hf_tokenizer))
    assert corpus_tokenizer(prefixes["text"]).fingerprint == tokenizer.fingerprint


@pytest.fixture
def bars(monkeypatch: pytest.MonkeyPatch) -> list[RecordedBar]:
    """The bars of annotations; no time has to pass between two moves."""
    monkeypatch.setattr(shared_progress, "INTERVAL_SECONDS", 0)
    return recorded_bars(monkeypatch, annotate_module)


def test_the_bar_moves_within_a_part(prefix: Path, bars: list[RecordedBar]) -> None:
    """Stumble: one part of ten minutes was 0 % and then 100 %."""

    def compute(documents: list[np.ndarray], on_share: Callable[[float], None]) -> np.ndarray:
        for number in range(len(documents)):
            on_share((number + 1) / len(documents))
        return np.full(len(documents), 2.0, dtype=np.float32)

    assert annotate(prefix, "perplexity", {}, compute, part_size=NUM_DOCUMENTS)
    (bar,) = bars
    assert bar.told == pytest.approx(list(range(1, NUM_DOCUMENTS + 1))) and bar.total == NUM_DOCUMENTS


def test_the_bar_moves_while_other_processes_work(prefix: Path, bars: list[RecordedBar]) -> None:
    """Rank 1 finishes a part and is in the middle of its next one when rank 0 has done half of its first."""

    def others(documents: list[np.ndarray], on_share: Callable[[float], None]) -> np.ndarray:
        if documents[0][0] == 15:
            on_share(0.4)
            raise KeyboardInterrupt
        return np.full(len(documents), 2.0, dtype=np.float32)

    def ours(documents: list[np.ndarray], on_share: Callable[[float], None]) -> np.ndarray:
        if documents[0][0] == 0:
            with pytest.raises(KeyboardInterrupt):
                annotate(prefix, "perplexity", {}, others, part_size=5, rank=1, world_size=2)
            on_share(0.5)
        return np.full(len(documents), 2.0, dtype=np.float32)

    assert not annotate(prefix, "perplexity", {}, ours, part_size=5, world_size=2)
    ours_bar, others_bar = bars
    assert ours_bar.told == pytest.approx([5 * 0.5 + 5 + 5 * 0.4]) and others_bar.told == []
    assert len(list(prefix.parent.glob("c.perplexity.parts/part-start-*"))) == 0


def test_notes_of_a_killed_job_do_not_count(prefix: Path, bars: list[RecordedBar]) -> None:
    def killed(documents: list[np.ndarray], on_share: Callable[[float], None]) -> np.ndarray:
        on_share(0.8)
        raise KeyboardInterrupt

    def compute(documents: list[np.ndarray], on_share: Callable[[float], None]) -> np.ndarray:
        on_share(0.2)
        return np.full(len(documents), 2.0, dtype=np.float32)

    with pytest.raises(KeyboardInterrupt):
        annotate(prefix, "perplexity", {}, killed, part_size=NUM_DOCUMENTS)
    (note,) = prefix.parent.glob("c.perplexity.parts/*.progress")
    assert bars[0].told == pytest.approx([0.8 * NUM_DOCUMENTS])
    yesterday = time.time() - 86400
    os.utime(note, (yesterday, yesterday))
    assert annotate(prefix, "perplexity", {}, compute, part_size=NUM_DOCUMENTS)
    assert bars[1].first == 0 and bars[1].told == pytest.approx([0.2 * NUM_DOCUMENTS])
    assert not list(prefix.parent.glob("c.perplexity.parts*"))


def test_a_job_that_goes_on_begins_where_it_was(prefix: Path, bars: list[RecordedBar]) -> None:
    with pytest.raises(KeyboardInterrupt):
        score_perplexity(prefix, Scorer(lives=2), part_size=5)
    assert score_perplexity(prefix, Scorer(), part_size=5)
    assert [bar.first for bar in bars] == [0, 10]


def test_topics_are_told_block_by_block(prefix: Path, bars: list[RecordedBar], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(annotate_module, "TEXTS_BETWEEN_SHARES", 10)
    label_topics(prefix, Longest(), build_tokenizer("auto", SAMPLE / "tokenizer"), part_size=NUM_DOCUMENTS)
    assert bars[0].told == pytest.approx([10, 20, 23])
