"""The .bin/.idx format against megatron-core, damaged files, and writers that are interrupted."""

import json
import os
import shutil
import struct
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from megatron_synE.corpus.indexed import (
    HEADER,
    IndexedCorpus,
    content_fingerprint,
    corpus_exists,
    token_dtype,
)
from megatron_synE.corpus.indexed_writer import IndexedCorpusWriter


def write(prefix: Path, documents: list[list[int]], dtype: type = np.uint16, **metadata: object) -> str:
    with IndexedCorpusWriter(prefix, dtype) as writer:
        for document in documents:
            writer.add_documents(np.array(document, dtype=np.int64), np.array([len(document)]))
        return writer.finalize(metadata)


@pytest.fixture
def prefix(tmp_path: Path) -> Path:
    write(tmp_path / "c", [[1, 2, 3], [4], [5, 6]], tokenizer={"vocab_size": 10})
    return tmp_path / "c"


@settings(max_examples=25, deadline=None)
@given(
    st.lists(st.lists(st.lists(st.integers(0, 65_499), max_size=9), min_size=1, max_size=3), min_size=1, max_size=9),
    st.sampled_from([np.uint16, np.int32]),
)
def test_files_are_those_of_megatron_core(
    tmp_path_factory: pytest.TempPathFactory, documents: list[list[list[int]]], dtype: type
) -> None:
    """Documents of several sequences, empty sequences included, in both dtypes."""
    from megatron.core.datasets.indexed_dataset import IndexedDatasetBuilder

    directory = tmp_path_factory.mktemp("idx")
    builder = IndexedDatasetBuilder(str(directory / "theirs.bin"), dtype=dtype)
    with IndexedCorpusWriter(directory / "ours", dtype) as writer:
        for document in documents:
            flat, lengths = [token for sequence in document for token in sequence], [len(s) for s in document]
            builder.add_document(flat, lengths)
            writer.add_documents(np.array(flat, dtype=np.int64), np.array(lengths), np.array([len(document)]))
        writer.finalize()
    builder.finalize(str(directory / "theirs.idx"))
    for kind in ("bin", "idx"):
        assert (directory / f"ours.{kind}").read_bytes() == (directory / f"theirs.{kind}").read_bytes()
    corpus = IndexedCorpus(directory / "ours")
    for i, document in enumerate(documents):
        assert corpus.document(i).tolist() == [token for sequence in document for token in sequence]
    assert corpus.document_lengths().tolist() == [sum(map(len, d)) for d in documents]


def test_vocabulary_decides_the_dtype_as_in_megatron_core() -> None:
    from megatron.core.datasets.indexed_dataset import DType

    for vocab_size in (100, 65_499, 65_500, 128_256):
        assert token_dtype(vocab_size) is DType.optimal_dtype(vocab_size)


def test_reader(prefix: Path) -> None:
    corpus = IndexedCorpus(prefix)
    assert (corpus.num_documents, corpus.num_tokens, corpus.dtype) == (3, 6, np.uint16)
    assert corpus.tokens.tolist() == [1, 2, 3, 4, 5, 6]
    assert corpus.sequence_lengths.tolist() == [3, 1, 2]
    assert corpus.sequence_offsets.tolist() == [0, 6, 8]
    assert corpus.document_boundaries.tolist() == [0, 1, 2, 3]
    assert corpus.tokenizer == {"vocab_size": 10}
    with pytest.raises(IndexError):
        corpus.document(3)


def damage(path: Path, offset: int, data: bytes) -> None:
    with open(path, "r+b") as file:
        file.seek(offset)
        file.write(data)


@pytest.mark.parametrize(
    ("kind", "change", "message"),
    [
        ("bin", lambda path: os.truncate(path, 10), "truncated"),
        ("bin", lambda path: path.write_bytes(path.read_bytes() + b"xx"), "too long"),
        ("bin", lambda path: path.unlink(), "no such file"),
        ("idx", lambda path: path.unlink(), "no such file"),
        ("idx", lambda path: os.truncate(path, 60), "damaged"),
        ("idx", lambda path: os.truncate(path, 10), "wrong magic"),
        ("idx", lambda path: os.truncate(path, 0), "wrong magic"),
        ("idx", lambda path: damage(path, 0, b"MMIDIDY"), "wrong magic"),
        ("idx", lambda path: damage(path, 9, struct.pack("<Q", 2)), "version 2"),
        ("idx", lambda path: damage(path, 17, b"\x07"), "dtype code 7"),
        ("idx", lambda path: damage(path, HEADER.size + 3 * 12, struct.pack("<q", 1)), "boundaries"),
    ],
)
def test_damaged_files_are_refused_by_name(prefix: Path, kind: str, change: object, message: str) -> None:
    change(Path(f"{prefix}.{kind}"))  # type: ignore[operator]
    with pytest.raises(ValueError, match=message) as caught:
        IndexedCorpus(prefix)
    assert f"c.{kind}" in str(caught.value)


def test_fingerprint_follows_the_content(prefix: Path, tmp_path: Path) -> None:
    recorded = IndexedCorpus(prefix).fingerprint
    assert recorded == content_fingerprint(prefix) == json.loads(Path(f"{prefix}.json").read_text())["fingerprint"]
    assert write(tmp_path / "same", [[1, 2, 3], [4], [5, 6]]) == recorded
    assert write(tmp_path / "moved", [[1, 2], [3, 4], [5, 6]]) != recorded  # the same .bin, another .idx
    assert write(tmp_path / "other", [[1, 2, 3], [4], [5, 7]]) != recorded


def test_fingerprint_is_recomputed_where_the_sidecar_does_not_vouch(prefix: Path) -> None:
    recorded = IndexedCorpus(prefix).fingerprint
    os.utime(f"{prefix}.bin")  # copied: the content is the same, the sidecar is right and gets the new time
    assert IndexedCorpus(prefix).tokenizer == {"vocab_size": 10}
    times = json.loads(Path(f"{prefix}.json").read_text())["files"]["bin"]["mtime_ns"]
    assert times == os.stat(f"{prefix}.bin").st_mtime_ns
    damage(Path(f"{prefix}.bin"), 0, b"\x09")  # rewritten: another fingerprint
    os.utime(f"{prefix}.bin", ns=(0, 0))
    with pytest.raises(ValueError, match="describes other content"):
        IndexedCorpus(prefix).fingerprint  # noqa: B018
    Path(f"{prefix}.json").unlink()
    assert IndexedCorpus(prefix).fingerprint not in (recorded, "") and IndexedCorpus(prefix).tokenizer is None


def test_nothing_is_left_when_a_writer_fails(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError), IndexedCorpusWriter(tmp_path / "c", np.int32) as writer:
        writer.add_documents(np.arange(3), np.array([3]))
        raise RuntimeError
    assert list(tmp_path.iterdir()) == []


def test_a_corpus_without_documents_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no document"), IndexedCorpusWriter(tmp_path / "c", np.int32) as writer:
        writer.finalize()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("step", range(7))
def test_an_interrupted_finalize_never_shows_a_mixed_corpus(
    prefix: Path, step: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Die before each renaming in turn: the old corpus, none, or the new; never one's .idx with the other's .bin."""
    new = [7, 7, 7, 8, 9, 9]
    real, calls = os.replace, 0

    def dies(source: object, target: object) -> None:
        nonlocal calls
        if calls == step:
            raise KeyboardInterrupt
        calls += 1
        real(source, target)  # type: ignore[arg-type]

    writer = IndexedCorpusWriter(prefix, np.uint16)
    writer.add_documents(np.array(new), np.array([3, 1, 2]))
    monkeypatch.setattr(os, "replace", dies)
    try:
        writer.finalize()
    except KeyboardInterrupt:
        if step < 2:  # the sidecar and the plan, still in the folder
            assert IndexedCorpus(prefix).tokens.tolist() == [1, 2, 3, 4, 5, 6]
        else:
            assert not corpus_exists(prefix)
            with pytest.raises(ValueError, match="no such file"):
                IndexedCorpus(prefix)
    else:
        assert IndexedCorpus(prefix).tokens.tolist() == new
    monkeypatch.undo()
    writer._staging._lock.close()
    write(prefix, [new])  # the next writer clears away what was left
    assert sorted(path.name for path in prefix.parent.iterdir()) == ["c.bin", "c.idx", "c.json"]


def test_a_second_writer_of_the_same_prefix_is_refused(tmp_path: Path) -> None:
    with IndexedCorpusWriter(tmp_path / "c", np.int32), pytest.raises(ValueError, match="another process"):
        IndexedCorpusWriter(tmp_path / "c", np.int32)
    assert list(tmp_path.iterdir()) == []


def test_copied_corpus_reads_the_same(prefix: Path, tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    for kind in ("bin", "idx", "json"):
        shutil.copyfile(f"{prefix}.{kind}", tmp_path / "elsewhere" / f"c.{kind}")
    assert IndexedCorpus(tmp_path / "elsewhere" / "c").fingerprint == IndexedCorpus(prefix).fingerprint
