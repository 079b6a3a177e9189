"""The ledger against what batches really contain, and tools/inspect_stream.py."""

from __future__ import annotations

import json
import sys
from collections import Counter
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
import yaml

from megatron_synE.checkpoint.files import file_checksum, write_file_list
from megatron_synE.config.data import AdjustmentConfig, DataConfig, SourceConfig, StageConfig
from megatron_synE.corpus.annotations import write_annotation
from megatron_synE.corpus.document_table import DocumentRecord
from megatron_synE.corpus.indexed import IndexedCorpus
from megatron_synE.data import DataStream, documents_read, ledger
from megatron_synE.data.ledger import documents_of
from tests.helpers.corpora import write_corpus, write_table
from tools import inspect_stream

SEQ_LENGTH = 16
TOPICS = ("law", "history", "others")


@pytest.fixture
def config(tmp_path: Path) -> DataConfig:
    """Two sources whose tokens are the numbers of their documents; the small one is read more than twice."""
    rng = np.random.default_rng(0)
    sources = {}
    for name, count in (("web", 150), ("book", 25)):
        documents = [[d] * int(rng.integers(1, 40)) for d in range(count)]
        topics, perplexity = rng.integers(0, 3, count), rng.uniform(1, 9, count)
        prefix = write_corpus(tmp_path / name, documents, topics=topics, names=TOPICS, perplexity=perplexity)
        sources[name] = SourceConfig(prefix, topics=name == "web", order="perplexity_ascending")
    stages = [
        StageConfig("one", 70 * SEQ_LENGTH, {"web": 0.75, "book": 0.25}),
        StageConfig("two", 90 * SEQ_LENGTH, {"web": 0.25, "book": 0.75}, orders={"web": "shuffled", "book": "stored"}),
    ]
    adjustment = AdjustmentConfig("topic_perplexity", interval_tokens=20 * SEQ_LENGTH, cap=0.9)
    return DataConfig(sources, stages, seq_length=SEQ_LENGTH, heldout_fraction=0.1, adjustment=adjustment)


def adjusted(config: DataConfig) -> DataStream:
    stream, rng = DataStream.build(config), np.random.default_rng(1)
    for sample in (0, 24, 40):
        stream.adjust(sample, {name: float(rng.uniform(2, 9)) for name in stream.component_names})
    return stream


@pytest.mark.parametrize(("first", "end"), [(0, 160), (0, 1), (13, 47), (60, 80), (150, 160), (30, 30)])
def test_the_ledger_says_what_the_batches_hold(config: DataConfig, first: int, end: int) -> None:
    stream = adjusted(config)
    held: dict[str, Counter[int]] = {name: Counter() for name in stream.component_names}
    for number in range(first, end):
        batch = stream.batch([number])
        held[stream.component_names[batch.component_B[0]]].update(batch.tokens_BS.ravel().tolist())
    documents: dict[str, list[int]] = {name: [] for name in stream.component_names}
    for read in documents_read(stream, first, end):
        documents[read.component] += read.documents.tolist()
    for entry in ledger(stream, first, end):
        assert set(documents[entry.component]) == set(held[entry.component])
        assert entry.tokens == held[entry.component].total() == entry.samples * SEQ_LENGTH
        assert entry.documents == len(documents[entry.component])
    assert sum(entry.samples for entry in ledger(stream, first, end)) == end - first


def test_no_heldout_document_stands_in_the_ledger(config: DataConfig) -> None:
    stream = adjusted(config)
    heldout = {name: set(part.documents.order.tolist()) for name, part in stream.heldout().items()}
    assert all(heldout.values())
    for read in documents_read(stream, 0, stream.num_samples):
        assert heldout[read.component].isdisjoint(read.documents.tolist())


def test_a_resumed_stream_reads_the_documents_of_the_uninterrupted_one(config: DataConfig) -> None:
    stream = adjusted(config)
    resumed = DataStream.build(config, state=json.loads(json.dumps(stream.state_dict(45))))
    for first, end in ((45, 46), (45, 160)):
        for a, b in zip(documents_read(stream, first, end), documents_read(resumed, first, end), strict=True):
            assert (a.component, a.epoch) == (b.component, b.epoch) and (a.documents == b.documents).all()


def test_epochs_and_repeats(config: DataConfig) -> None:
    stream = DataStream.build(config)
    entry = ledger(stream, 0, stream.num_samples)[0]
    book = stream.components[0]
    assert entry.component == "book" and entry.last_epoch == entry.tokens / book.num_tokens > 2
    assert entry.repeated_tokens == entry.tokens - book.num_tokens
    halves = [ledger(stream, *part)[0] for part in ((0, 80), (80, 160))]
    assert sum(half.repeated_tokens for half in halves) == entry.repeated_tokens
    assert halves[0].last_epoch == halves[1].first_epoch


def test_ranges_outside_the_stream_are_refused(config: DataConfig) -> None:
    with pytest.raises(ValueError, match="leave the stream of 160"):
        ledger(DataStream.build(config), 0, 161)


@pytest.fixture
def files(config: DataConfig, tmp_path: Path) -> tuple[str, str]:
    """A config file, and a checkpoint's state.json in a folder."""
    path, checkpoint = tmp_path / "job.yaml", tmp_path / "step_00000010"
    content = {"data": asdict(config), "training": {"global_batch_size": 4}}
    path.write_text(yaml.safe_dump(content), encoding="utf-8")
    checkpoint.mkdir()
    state = {
        "format_version": 1, "step": 12, "consumed_samples": 48, "config": {"training": {"global_batch_size": 4}},
        "architecture": {}, "layout": {}, "has_optimizer": False,
    }  # fmt: skip
    state["stream"] = adjusted(config).state_dict(48)
    (checkpoint / "state.json").write_text(json.dumps(state), encoding="utf-8")
    write_file_list(checkpoint, {"state.json": file_checksum(checkpoint / "state.json")})
    return str(path), str(checkpoint)


def test_the_plan_before_training(files: tuple[str, str], capsys: pytest.CaptureFixture[str]) -> None:
    assert inspect_stream.main(["--config", files[0]]) == 0
    printed = capsys.readouterr().out
    assert [line.split(" in ")[0] for line in printed.splitlines() if " in samples " in line] == [
        "stage one: 1,120 tokens",
        "stage two: 1,440 tokens",
        "all stages: 2,560 tokens",
    ]
    assert "web/law" in printed and "75.5556%" in printed


def test_steps_of_a_checkpoint(files: tuple[str, str], config: DataConfig, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["--config", files[0], "--checkpoint", files[1], "--steps", "5:9", "--json"]
    assert inspect_stream.main(arguments) == 0
    printed = json.loads(capsys.readouterr().out)
    stream = adjusted(config)
    assert printed["ranges"][0]["ledger"] == [asdict(entry) for entry in ledger(stream, 20, 36)]
    assert [decision["at_sample"] for decision in printed["decisions"]] == [0, 24, 40]


def test_documents_and_plot(files: tuple[str, str], config: DataConfig, tmp_path: Path) -> None:
    documents, picture = tmp_path / "documents.jsonl", tmp_path / "shares.png"
    arguments = ["--config", files[0], "--checkpoint", files[1], "--samples", "30:50", "--documents", str(documents)]
    pytest.importorskip("matplotlib")
    assert inspect_stream.main([*arguments, "--plot", str(picture)]) == 0
    lines = [json.loads(line) for line in documents.read_text(encoding="utf-8").splitlines()]
    expected = list(documents_read(adjusted(config), 30, 50))
    assert [line["documents"] for line in lines] == [read.documents.tolist() for read in expected]
    assert picture.read_bytes().startswith(b"\x89PNG")


def test_mistakes_end_with_one_message(files: tuple[str, str], capsys: pytest.CaptureFixture[str]) -> None:
    assert inspect_stream.main(["--config", files[0], "--state", "nowhere.json"]) == 1
    assert "nowhere.json" in capsys.readouterr().err
    assert inspect_stream.main(["--config", files[0], "--samples", "0:999"]) == 1
    assert "leave the stream" in capsys.readouterr().err
    assert inspect_stream.main(["--config", files[0], "--data.seq_length", "100000"]) == 1
    assert "data.stages.one.tokens" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        inspect_stream.main(["--config", files[0], "--steps", "9:5"])


def test_stale_corpus_is_refused_for_a_checkpoint(
    files: tuple[str, str], config: DataConfig, capsys: pytest.CaptureFixture[str]
) -> None:
    write_corpus(Path(config.sources["book"].prefix), [[1, 2, 3]] * 90, perplexity=[1.0] * 90)
    assert inspect_stream.main(["--config", files[0], "--checkpoint", files[1]]) == 1
    assert "data.sources.book" in capsys.readouterr().err


def test_an_annotation_made_anew_is_refused_for_a_checkpoint(
    files: tuple[str, str], config: DataConfig, capsys: pytest.CaptureFixture[str]
) -> None:
    """Else the ledger would claim other documents for what was read."""
    corpus = IndexedCorpus(config.sources["book"].prefix)
    values = np.full(corpus.num_documents, 3, np.float32)
    write_annotation(corpus.prefix, "perplexity", values, corpus.fingerprint, {"name": "another"})
    assert inspect_stream.main(["--config", files[0], "--checkpoint", files[1], "--steps", "1:2"]) == 1
    error = capsys.readouterr().err
    assert "data.sources.book" in error and "book.perplexity.npy was annotated anew" in error


def test_incidents_name_documents_by_their_table(config: DataConfig) -> None:
    """With a table that is not the corpus's, the numbers are told all the same."""
    stream = adjusted(config)
    web, book = (config.sources[name].prefix for name in ("web", "book"))
    write_table(web, [DocumentRecord(f"id{n}", "web.jsonl", n + 1, {"url": f"u{n}"}) for n in range(150)])
    write_table(book, [DocumentRecord(None, "book.jsonl", n + 1, {}) for n in range(25)])
    entries = documents_of(stream, [range(10, 20), range(30, 31)])
    for entry in entries:
        numbers = entry["documents"]
        if entry["corpus"] == web:
            assert entry["ids"] == [f"id{n}" for n in numbers] and entry["keys"] == {"url": [f"u{n}" for n in numbers]}
        assert entry["places"] == [f"{Path(entry['corpus']).name}.jsonl:{n + 1}" for n in numbers]
        assert ("ids" in entry, "keys" in entry) == (entry["corpus"] == web,) * 2
    assert json.loads(json.dumps(entries)) == entries
    Path(f"{book}.documents.arrow").write_bytes(b"damaged")
    again = documents_of(stream, [range(10, 20), range(30, 31)])
    assert [entry["documents"] for entry in again] == [entry["documents"] for entry in entries]
    assert all("book.documents.arrow" in entry["table_problem"] for entry in again if entry["corpus"] == book)


def test_many_documents_come_in_pieces(config: DataConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    stream = adjusted(config)
    whole = list(documents_read(stream, 0, 160))
    monkeypatch.setattr(sys.modules["megatron_synE.data.ledger"], "DOCUMENTS_PER_PIECE", 7)
    pieces = documents_of(stream, [range(160)])
    assert max(len(piece["documents"]) for piece in pieces) == 7
    for read in whole:
        found = [p["documents"] for p in pieces if (p["component"], p["epoch"]) == (read.component, read.epoch)]
        assert [number for piece in found for number in piece] == read.documents.tolist()
