"""Merged corpora are what megatron-core's builder makes; what lies beside them comes along or is named."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from megatron_synE.corpus.annotations import Annotations
from megatron_synE.corpus.blocks import iter_blocks
from megatron_synE.corpus.document_table import DocumentRecord, DocumentTable
from megatron_synE.corpus.indexed import IndexedCorpus
from megatron_synE.corpus.merge import merge_corpora
from megatron_synE.corpus.verify import verify_corpus
from tests.helpers.corpora import random_documents, write_corpus, write_table
from tools import merge_corpora as tool

DOCUMENT = st.lists(st.lists(st.integers(0, 65_499), max_size=5), min_size=0, max_size=3)
CORPUS = st.lists(DOCUMENT, min_size=1, max_size=6)


@settings(max_examples=12, deadline=None)  # a merge waits for the disk
@given(st.lists(CORPUS, min_size=1, max_size=3))
def test_bytes_are_those_of_megatron_core(
    tmp_path_factory: pytest.TempPathFactory, corpora: list[list[list[list[int]]]]
) -> None:
    """Documents of several sequences, empty sequences and empty documents included."""
    from megatron.core.datasets.indexed_dataset import IndexedDatasetBuilder

    folder = tmp_path_factory.mktemp("merge")
    builder = IndexedDatasetBuilder(str(folder / "theirs.bin"), dtype=np.int32)
    for number, documents in enumerate(corpora):
        part = IndexedDatasetBuilder(str(folder / f"part{number}.bin"), dtype=np.int32)
        for document in documents:
            part.add_document([token for sequence in document for token in sequence], [len(s) for s in document])
        part.finalize(str(folder / f"part{number}.idx"))
        builder.add_index(str(folder / f"part{number}"))
    builder.finalize(str(folder / "theirs.idx"))
    merge_corpora([str(folder / f"part{number}") for number in range(len(corpora))], str(folder / "ours"))
    for kind in ("bin", "idx"):
        assert (folder / f"ours.{kind}").read_bytes() == (folder / f"theirs.{kind}").read_bytes()


def test_blocks_are_the_corpus_whatever_their_size(tmp_path: Path) -> None:
    documents = [*random_documents(np.random.default_rng(0), 50), list(range(100)), [], [7]]
    corpus = IndexedCorpus(write_corpus(tmp_path / "c", documents))
    for block_tokens in (1, 30, 64, 10_000):
        blocks = list(iter_blocks(corpus, block_tokens=block_tokens))
        assert [tokens.tolist() for block in blocks for tokens in block.documents()] == documents
        assert all(len(block.tokens) <= block_tokens or block.num_documents == 1 for block in blocks)
    middle = [tokens.tolist() for block in iter_blocks(corpus, 10, 52) for tokens in block.documents()]
    assert middle == documents[10:52]


def parts(folder: Path, **second: object) -> list[str]:
    """Two annotated corpora, whose topics have other numbers; `second` replaces what the second one has."""
    rng = np.random.default_rng(1)
    found = []
    for name, names in (("a", ["law", "maths"]), ("b", ["art", "law"])):
        options = {"topics": rng.integers(-1, 2, 20), "names": names, "perplexity": rng.uniform(1, 9, 20)}
        if name == "b":
            options |= second
        found.append(write_corpus(folder / name, random_documents(rng, 20), **options))
    return found


def labels(prefix: str) -> list[str | None]:
    found = Annotations(prefix)
    return [found.topic_names[number] if number >= 0 else None for number in found.get("topic")]


def test_annotations_come_along(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    a, b = parts(tmp_path)
    merged = str(tmp_path / "deep" / "merged")
    assert tool.main(["--input", b, a, "--output-prefix", merged]) == 0
    shown = capsys.readouterr()
    assert "40 documents" in shown.out and shown.out.strip().endswith("of 2 corpora, perplexity, topic")
    assert shown.err == ""
    assert labels(merged) == labels(b) + labels(a) and None in labels(merged)
    assert Annotations(merged).topic_names == ["art", "law", "maths"]
    expected = np.concatenate([Annotations(prefix).get("perplexity") for prefix in (b, a)])
    assert Annotations(merged).get("perplexity").tolist() == expected.tolist()
    assert verify_corpus(merged).problems == []


def test_what_cannot_come_along_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    a, b = parts(tmp_path, perplexity=None)
    info = json.loads(Path(f"{b}.topic.json").read_text())
    Path(f"{b}.topic.json").write_text(json.dumps({**info, "annotator": {"name": "another"}}))
    merged = str(tmp_path / "merged")
    assert tool.main(["--input", a, b, "--output-prefix", merged]) == 0
    lines = capsys.readouterr().err.splitlines()
    assert lines == [
        f"merge_corpora: not carried over: perplexity: {b} has none",
        f"merge_corpora: not carried over: topic: {b} has it from another annotator than {a}",
    ]
    assert not list(tmp_path.glob("merged.topic.*")) and not list(tmp_path.glob("merged.perplexity.*"))


def name_tokenizer(prefix: str, fingerprint: str) -> None:
    content = json.loads(Path(f"{prefix}.json").read_text())
    tokenizer = {"type": "HuggingFaceTokenizer", "name": f"T-{fingerprint}", "fingerprint": fingerprint}
    Path(f"{prefix}.json").write_text(json.dumps({**content, "tokenizer": tokenizer}))


def flip(prefix: str) -> None:
    status = os.stat(f"{prefix}.bin")
    content = bytearray(Path(f"{prefix}.bin").read_bytes())
    content[10] ^= 1
    Path(f"{prefix}.bin").write_bytes(content)
    os.utime(f"{prefix}.bin", ns=(status.st_atime_ns, status.st_mtime_ns))


def test_other_tokenizers_dtypes_and_damaged_inputs_are_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    a, b = (write_corpus(tmp_path / name, [[1, 2, 3]] * 5) for name in "ab")
    wide = write_corpus(tmp_path / "wide", [[1, 2, 3]], dtype=np.int32)
    damaged = write_corpus(tmp_path / "damaged", [[1, 2, 3]] * 9)
    flip(damaged)
    name_tokenizer(a, "1")
    name_tokenizer(b, "2")
    for inputs, message in (
        ([a, b], f"{b}: was made with the tokenizer T-2, {a} with T-1"),
        ([a, wide], "wide: tokens are int32, those of"),
        ([a, damaged], "damaged.json: describes other content"),
        ([a, str(tmp_path / "none")], "none.idx: no such file"),
        ([a, a, "--overwrite", "--output-prefix", a], "is one of the inputs"),
    ):
        assert tool.main(["--output-prefix", str(tmp_path / "out"), "--input", *inputs]) == 1
        assert message in capsys.readouterr().err
    assert not list(tmp_path.glob("out*")) and IndexedCorpus(a).num_documents == 5


def test_a_corpus_is_replaced_only_where_that_is_asked_for(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    a, b = (write_corpus(tmp_path / name, [[1, 2, 3]] * count) for name, count in (("a", 5), ("b", 6)))
    arguments = ["--input", a, a, "--output-prefix", b]
    assert tool.main(arguments) == 1
    assert f"{b}.idx: is there already" in capsys.readouterr().err and IndexedCorpus(b).num_documents == 6
    assert tool.main([*arguments, "--overwrite"]) == 0 and IndexedCorpus(b).num_documents == 10


def rows(count: int, file: str, *keys: str) -> list[DocumentRecord]:
    return [
        DocumentRecord(f"{file}-{n}", f"{file}{n % 2}.jsonl", n + 1, {key: f"{key}{n}" for key in keys})
        for n in range(count)
    ]


def test_document_tables_come_along(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Inputs are counted anew; one that both corpora were made of stands once; a key that one did not keep is null."""
    a, b = (write_corpus(tmp_path / name, [[1, 2, 3]] * count) for name, count in (("a", 5), ("b", 6)))
    of_a, of_b = rows(5, "x", "url"), [*rows(3, "x", "url", "date"), *rows(3, "y", "url", "date")]
    write_table(a, of_a)
    write_table(b, of_b)
    merged = str(tmp_path / "merged")
    assert tool.main(["--input", a, b, "--output-prefix", merged]) == 0
    shown = capsys.readouterr()
    assert "document table" in shown.out and "date stays empty for 1 of 2 corpora" in shown.err
    table = DocumentTable(merged, IndexedCorpus(merged))
    expected = [DocumentRecord(r.id, r.file, r.line, {"url": r.keys["url"], "date": None}) for r in of_a]
    assert table.rows(range(11)) == [*expected, *of_b]
    assert table.inputs == ["x0.jsonl", "x1.jsonl", "y0.jsonl", "y1.jsonl"]
    assert verify_corpus(merged).problems == [] and "document table" in verify_corpus(merged).summary


def test_a_table_that_not_all_have_stays_behind(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    a, b = (write_corpus(tmp_path / name, [[1, 2, 3]] * count) for name, count in (("a", 5), ("b", 6)))
    write_table(a, rows(5, "x"))
    assert tool.main(["--input", a, b, "--output-prefix", str(tmp_path / "merged")]) == 0
    assert f"not carried over: document table: {b} has none" in capsys.readouterr().err
    write_table(b, rows(6, "x"), fingerprint="0" * 32)
    assert tool.main(["--input", a, b, "--output-prefix", str(tmp_path / "again")]) == 0
    assert "b.documents.arrow: belongs to other content" in capsys.readouterr().err
    assert not list(tmp_path.glob("*.documents.arrow.tmp*")) and not (tmp_path / "again.documents.arrow").exists()
