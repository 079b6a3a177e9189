"""A corpus that is exported and tokenised again is the same corpus; what would not be is said."""

from __future__ import annotations

import gzip
import io
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from megatron_synE.corpus.annotations import write_annotation, write_labels
from megatron_synE.corpus.document_table import DocumentRecord
from megatron_synE.corpus.export import DocumentExporter
from megatron_synE.corpus.indexed import IndexedCorpus
from megatron_synE.corpus.indexed_writer import IndexedCorpusWriter
from megatron_synE.corpus.merge import merge_corpora
from megatron_synE.corpus.preprocess import PreprocessOptions, preprocess
from megatron_synE.corpus.statistics import corpus_statistics
from megatron_synE.corpus.tokenizers import CorpusTokenizer, build_tokenizer
from tests.helpers.commands import SAMPLE
from tests.helpers.corpora import random_documents, write_corpus, write_table
from tools import export_corpus as tool


@pytest.fixture(scope="module")
def tokenizer() -> CorpusTokenizer:
    return build_tokenizer("auto", SAMPLE / "tokenizer")


def tokenised(source: Path, prefix: Path, tokenizer: CorpusTokenizer, **options: Any) -> str:
    prefixes, _ = preprocess([source], str(prefix), tokenizer, PreprocessOptions(append_eod=True, **options))
    return prefixes["text"]


def same_files(one: str, other: str) -> bool:
    return all(Path(f"{one}.{kind}").read_bytes() == Path(f"{other}.{kind}").read_bytes() for kind in ("bin", "idx"))


@pytest.mark.parametrize("suffix", ["jsonl", "jsonl.gz", "jsonl.zst"])
def test_round_trip(
    tmp_path: Path, tokenizer: CorpusTokenizer, suffix: str, capsys: pytest.CaptureFixture[str]
) -> None:
    prefix, out = tokenised(SAMPLE / "web_zh.jsonl", tmp_path / "o", tokenizer), tmp_path / "deep" / f"again.{suffix}"
    assert tool.main([prefix, "--output", str(out)]) == 0
    shown = capsys.readouterr()
    assert shown.out == f"{out}: 240 documents\n" and shown.err == ""
    assert same_files(prefix, tokenised(out, tmp_path / "again", tokenizer))
    assert sorted(path.name for path in out.parent.iterdir()) == [out.name]


TEXT = st.text(st.characters(exclude_categories=["Cs"]), min_size=1).filter(lambda text: not text.isspace())


@settings(max_examples=50, deadline=None)
@given(st.lists(TEXT | st.sampled_from(["<|end_of_text|>", "a\r\nb\0", "👩‍🔬🇨🇳", "x" * 5000]), min_size=1, max_size=8))
def test_any_text_comes_back(
    tmp_path_factory: pytest.TempPathFactory, tokenizer: CorpusTokenizer, texts: list[str]
) -> None:
    folder, out = tmp_path_factory.mktemp("export"), io.BytesIO()
    (folder / "in.jsonl").write_bytes(b"".join(orjson.dumps({"text": text}) + b"\n" for text in texts))
    corpus = IndexedCorpus(tokenised(folder / "in.jsonl", folder / "o", tokenizer))
    exported = DocumentExporter(corpus, tokenizer).write(out)
    assert [json.loads(line)["text"] for line in out.getvalue().splitlines()] == texts
    assert (exported.num_documents, exported.num_changed) == (len(texts), 0)


def test_what_is_known_of_a_document_comes_with_it(
    tmp_path: Path, tokenizer: CorpusTokenizer, capfdbinary: pytest.CaptureFixture[bytes]
) -> None:
    prefix = tokenised(SAMPLE / "web_en.jsonl", tmp_path / "o", tokenizer)
    corpus = IndexedCorpus(prefix)
    rows = [DocumentRecord(None, "a.jsonl", n + 1, {"url": f"u{n}", "text": "no"}) for n in range(corpus.num_documents)]
    rows[2] = DocumentRecord("id2", "a.jsonl", 9, {"url": None, "text": "no"})
    write_table(prefix, rows)
    annotator, topics = {"name": "test"}, np.arange(corpus.num_documents, dtype=np.int16) % 2 - 1
    write_labels(prefix, topics, ["law"], corpus.fingerprint, annotator)
    scores = np.full(corpus.num_documents, 2.5, np.float32)
    write_annotation(prefix, "perplexity", scores, corpus.fingerprint, annotator)
    assert tool.main([prefix, "--documents", "1:3", "--annotations"]) == 0
    one, two = map(json.loads, capfdbinary.readouterr().out.splitlines())
    texts = [json.loads(line)["text"] for line in (SAMPLE / "web_en.jsonl").read_text(encoding="utf-8").splitlines()]
    assert one == {"text": texts[1], "url": "u1", "file": "a.jsonl", "line": 2, "topic": "law", "perplexity": 2.5}
    assert two == {"text": texts[2], "id": "id2", "file": "a.jsonl", "line": 9, "perplexity": 2.5}


def test_tokens_that_are_not_those_of_their_text_are_counted(
    tmp_path: Path, tokenizer: CorpusTokenizer, capsys: pytest.CaptureFixture[str]
) -> None:
    tokens, _ = tokenizer.encode_batch(["the area of the circle"])
    spelt = np.concatenate([tokenizer.encode_batch([letter])[0] for letter in "the area"])
    with IndexedCorpusWriter(tmp_path / "c", np.uint16) as writer:
        for document in (tokens, spelt, tokens):
            writer.add_documents(document, np.array([len(document)]))
        writer.finalize({"tokenizer": tokenizer.describe()})
    assert tool.main([str(tmp_path / "c"), "--output", str(tmp_path / "o.jsonl")]) == 0
    assert "1 of 3 documents, first document 1, are tokenised differently" in capsys.readouterr().err


def test_mistakes_end_with_one_message_and_leave_nothing(
    tmp_path: Path, tokenizer: CorpusTokenizer, capsys: pytest.CaptureFixture[str]
) -> None:
    prefix, there = tokenised(SAMPLE / "web_en.jsonl", tmp_path / "o", tokenizer), tmp_path / "there.jsonl"
    there.write_text("mine")
    for arguments, message in (
        (["--output", "o.json"], "o.json: the name must end in .jsonl, .jsonl.gz, .jsonl.zst"),
        (["--output", str(there)], "there.jsonl: is there already"),
        (["--output", "/proc/nowhere/o.jsonl"], "/proc/nowhere"),
        (["--documents", "5"], "--documents 5: is not FIRST:END"),
        (["--documents", "7:999"], "the corpus has documents 0:240"),
    ):
        assert tool.main([prefix, *arguments]) == 1
        shown = capsys.readouterr()
        assert message in shown.err and len(shown.err.splitlines()) == 1 and shown.out == ""
    assert there.read_text() == "mine"
    assert tool.main([prefix, "--output", str(there), "--overwrite"]) == 0
    assert len(there.read_text(encoding="utf-8").splitlines()) == 240


def test_compressed_files_are_whole(tmp_path: Path, tokenizer: CorpusTokenizer) -> None:
    """Also for other programs, which look at the end of a stream."""
    prefix = tokenised(SAMPLE / "web_en.jsonl", tmp_path / "o", tokenizer)
    for suffix in ("gz", "zst"):
        assert tool.main([prefix, "--output", str(tmp_path / f"o.jsonl.{suffix}")]) == 0
    plain = gzip.decompress((tmp_path / "o.jsonl.gz").read_bytes())
    with open(tmp_path / "o.jsonl.zst", "rb") as file:
        assert zstandard.ZstdDecompressor().stream_reader(file).read() == plain


BOUNDARIES = 34 + 12 * 40
"""Where the .idx of 40 documents has their boundaries, after its header, lengths and offsets."""


@settings(max_examples=120, deadline=None)
@given(place=st.integers(34, BOUNDARIES + 8 * 41 - 1), bit=st.integers(0, 7))
def test_a_damaged_index_is_told_by_every_reader(
    tmp_path_factory: pytest.TempPathFactory, tokenizer: CorpusTokenizer, place: int, bit: int
) -> None:
    """With no sidecar that would know better."""
    prefix = str(tmp_path_factory.mktemp("damaged") / "c")
    write_corpus(Path(prefix), random_documents(np.random.default_rng(0), 40))
    Path(f"{prefix}.json").unlink()
    index = bytearray(Path(f"{prefix}.idx").read_bytes())
    index[place] ^= 1 << bit
    Path(f"{prefix}.idx").write_bytes(index)
    for read in (
        lambda: DocumentExporter(IndexedCorpus(prefix), tokenizer).write(io.BytesIO()),
        lambda: corpus_statistics(IndexedCorpus(prefix), tokenizer),
        lambda: merge_corpora([prefix], f"{prefix}-merged"),
    ):
        try:
            read()
        except ValueError as error:
            assert re.search(r"c\.(idx|bin): ", str(error))
        else:
            assert place >= BOUNDARIES  # another division into documents, which may be one, too
