"""Everything of a corpus is read, and every fault is named; damaged JSON and arrays give one error, nothing else."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from megatron_synE.corpus.annotate import corpus_tokenizer
from megatron_synE.corpus.annotations import Annotations
from megatron_synE.corpus.document_table import DocumentRecord
from megatron_synE.corpus.indexed import HEADER, IndexedCorpus
from megatron_synE.corpus.indexed_writer import IndexedCorpusWriter
from megatron_synE.corpus.verify import verify_corpus
from tests.helpers.corpora import random_documents, write_corpus, write_table
from tools import verify_corpus as tool

VOCAB_SIZE = 300
NUM_DOCUMENTS = 40


@pytest.fixture
def prefix(tmp_path: Path) -> str:
    return make(tmp_path / "web")


def make(prefix: Path, token: int = 299, dtype: type = np.uint16) -> str:
    """Annotated, with a sidecar that names the vocabulary; document 7 ends in `token`."""
    rng = np.random.default_rng(0)
    documents = random_documents(rng, NUM_DOCUMENTS, vocab_size=VOCAB_SIZE)
    documents[7][-1] = token
    topics, perplexity = rng.integers(0, 2, NUM_DOCUMENTS), rng.uniform(1, 9, NUM_DOCUMENTS)
    write_corpus(prefix, documents, topics=topics, names=("a", "b"), perplexity=perplexity, dtype=dtype)
    sidecar = json.loads(Path(f"{prefix}.json").read_text())
    tokenizer = {"type": "HuggingFaceTokenizer", "name": "t", "fingerprint": "f", "vocab_size": VOCAB_SIZE, "eod_id": 0}
    Path(f"{prefix}.json").write_text(json.dumps({**sidecar, "tokenizer": tokenizer}))
    place_documents(str(prefix))
    return str(prefix)


def place_documents(prefix: str, line: int = 1, **fingerprint: str) -> None:
    rows = [DocumentRecord(None, "web.jsonl", line + number, {}) for number in range(NUM_DOCUMENTS)]
    write_table(prefix, rows, **fingerprint)


def edit(path: str, place: int, content: bytes, keep_time: bool = True) -> None:
    status = os.stat(path)
    with open(path, "r+b") as file:
        file.seek(place)
        file.write(content)
    if keep_time:
        os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))


def flip_line(path: str, line: int) -> None:
    """In the column that holds the number of the line."""
    edit(path, Path(path).read_bytes().index(line.to_bytes(8, "little") + (line + 1).to_bytes(8, "little")), b"\x63")


def edit_json(path: str, **fields: object) -> None:
    Path(path).write_text(json.dumps({**json.loads(Path(path).read_text()), **fields}))


def test_good_corpora_have_one_line_each(prefix: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bare = write_corpus(tmp_path / "bare", [[1, 2, 3]])
    os.unlink(f"{bare}.json")
    assert tool.main([prefix, bare]) == 0
    first, second = capsys.readouterr().out.splitlines()
    assert first.startswith(f"{prefix}: good: 40 documents, ")
    assert first.endswith("tokens, perplexity, topic, document table")
    assert second == f"{bare}: good: 1 documents, 3 tokens, no sidecar to compare with"


FAULTS: dict[str, tuple[Callable[[str], object], str]] = {
    "a flipped token": (lambda p: edit(f"{p}.bin", 100, b"\x01"), r"web\.json: fingerprint is .* but the files have"),
    "a length": (lambda p: edit(f"{p}.idx", HEADER.size, b"\xff\xff\xff\xff"), r"web\.idx: sequence 0 has length -1"),
    "an offset": (lambda p: edit(f"{p}.idx", HEADER.size + 4 * 40 + 8 * 5, b"\x02"), r"web\.idx: sequence 5 has"),
    "a boundary": (lambda p: edit(f"{p}.idx", HEADER.size + 12 * 40 + 8 * 6, b"\x09"), r"web\.idx: document 6 ends"),
    "a short .bin": (lambda p: os.truncate(f"{p}.bin", 20), r"web\.bin: truncated"),
    "no .idx": (lambda p: os.unlink(f"{p}.idx"), r"web\.idx: no such file"),
    "a sidecar's count": (lambda p: edit_json(f"{p}.json", num_tokens=7), r"web\.json: num_tokens is 7, but"),
    "a sidecar's field": (lambda p: edit_json(f"{p}.json", fingerprint=7), r"web\.json: fingerprint is 7, not a"),
    "a torn sidecar": (lambda p: os.truncate(f"{p}.json", 50), r"web\.json: cannot be read"),
    "a score": (lambda p: edit(f"{p}.perplexity.npy", 140, b"\0\0\0\0"), r"\.npy: perplexity of document 3 is"),
    "a likely score": (lambda p: edit(f"{p}.perplexity.npy", 140, b"\0\0\0A"), r"perplexity\.npy: damaged"),
    "a topic": (lambda p: edit(f"{p}.topic.npy", 130, b"\x07"), r"topic\.npy: topic of document 1 is 7"),
    "a foreign table": (lambda p: place_documents(p, fingerprint="0" * 32), r"documents\.arrow: belongs to other"),
    "a flipped line": (lambda p: flip_line(f"{p}.documents.arrow", 39), r"arrow: damaged from document 0 on"),
    "an impossible line": (lambda p: place_documents(p, line=0), r"document 0 is said to be line 0 of input 0, of 1"),
    "a torn table": (lambda p: os.truncate(f"{p}.documents.arrow", 900), r"arrow: not a readable document table"),
    "a foreign label": (lambda p: edit_json(f"{p}.topic.json", fingerprint="0"), r"topic\.json: fingerprint is 0, but"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_what_is_wrong_is_named(prefix: str, fault: str, capsys: pytest.CaptureFixture[str]) -> None:
    damage, message = FAULTS[fault]
    damage(prefix)
    with pytest.raises(AssertionError, match=message):
        assert verify_corpus(prefix).problems == []
    assert tool.main([prefix]) == 1
    shown = capsys.readouterr()
    assert shown.out == "" and all(line.startswith("verify_corpus: /") for line in shown.err.splitlines())


@pytest.mark.parametrize("token", [300, 65535])
def test_tokens_beyond_the_vocabulary(tmp_path: Path, token: int) -> None:
    prefix = make(tmp_path / "web", token)
    (problem,) = verify_corpus(prefix).problems
    assert f"web.bin: document 7 holds token {token}; the vocabulary has 300 (1 such tokens)" in problem
    assert verify_corpus(prefix, vocab_size=70_000).problems == []
    assert "(1 such" not in verify_corpus(prefix, vocab_size=200).problems[0]
    os.unlink(f"{prefix}.json")
    assert verify_corpus(prefix).problems == []


def test_negative_tokens(tmp_path: Path) -> None:
    (problem,) = verify_corpus(make(tmp_path / "web", -5, np.int32)).problems
    assert "document 7 holds token -5" in problem


JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=4),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=5,
)
JUNK = [b"[" * 100_000, b"9" * 5000, b"PK\3\4", b"-1,", b"(9**9,"]
KINDS = ("json", "topic.json", "perplexity.json", "topic.npy", "perplexity.npy", "idx")
FIELDS = {
    "json": ["format_version", "fingerprint", "num_tokens", "tokenizer", "files"],
    "topic.json": ["schema_version", "name", "dtype", "fingerprint", "names", "checksum", "annotator"],
    "perplexity.json": ["schema_version", "name", "dtype", "fingerprint", "names", "checksum"],
}


def read_all(prefix: str) -> None:
    """As the trainer and the tools do. The only errors are ValueErrors that name a file of the corpus."""
    for read in (
        lambda: IndexedCorpus(prefix).metadata,
        lambda: corpus_tokenizer(prefix),
        lambda: Annotations(prefix).get("topic"),
        lambda: Annotations(prefix).topic_names,
        lambda: Annotations(prefix).get("perplexity"),
    ):
        try:
            read()
        except ValueError as error:
            assert prefix in str(error), error


@dataclass(frozen=True)
class Shared:
    """A corpus that each example damages and finds whole."""

    prefix: str
    content: dict[str, bytes]

    @contextlib.contextmanager
    def damaged(self, kind: str, content: bytes) -> Iterator[None]:
        times = {name: os.stat(f"{self.prefix}.{name}") for name in self.content}
        Path(f"{self.prefix}.{kind}").write_bytes(content)
        try:
            yield
        finally:
            for name, whole in self.content.items():
                Path(f"{self.prefix}.{name}").write_bytes(whole)
                os.utime(f"{self.prefix}.{name}", ns=(times[name].st_atime_ns, times[name].st_mtime_ns))


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Shared:
    prefix = make(tmp_path_factory.mktemp("shared") / "web")
    return Shared(prefix, {kind: Path(f"{prefix}.{kind}").read_bytes() for kind in KINDS})


@settings(max_examples=150, deadline=None)
@given(st.sampled_from([(kind, field) for kind, fields in FIELDS.items() for field in fields]), JSON_VALUES)
def test_crafted_json_gives_one_error(shared: Shared, place: tuple[str, str], value: object) -> None:
    kind, field = place
    content = {**json.loads(shared.content[kind]), field: value}
    with shared.damaged(kind, json.dumps(content).encode()):
        read_all(shared.prefix)


@settings(max_examples=250, deadline=None)
@given(
    st.sampled_from(KINDS),
    st.integers(0, 200),
    st.integers(0, 9),
    st.binary(max_size=6) | st.sampled_from(JUNK),
    st.integers(0, 400) | st.none(),
)
def test_damaged_bytes_give_one_error(
    shared: Shared, kind: str, first: int, removed: int, junk: bytes, end: int | None
) -> None:
    content = shared.content[kind]
    with shared.damaged(kind, (content[:first] + junk + content[first + removed :])[:end]):
        read_all(shared.prefix)


def test_a_text_beside_the_corpus_is_no_sidecar(prefix: str, caplog: pytest.LogCaptureFixture) -> None:
    """Some keep web.json, web.bin and web.idx together."""
    Path(f"{prefix}.json").write_text('{"text": "…"}\n' * 100_000, encoding="utf-8")
    assert IndexedCorpus(prefix).tokenizer is None
    assert "web.json: too large for the sidecar" in caplog.messages[0]


def test_a_sidecar_of_other_content_is_refused(prefix: str) -> None:
    """A flipped bit before the first start: the corpus trained as if it had never been another one."""
    content = Path(f"{prefix}.json").read_text()
    with IndexedCorpusWriter(prefix, np.uint16) as writer:
        writer.add_documents(np.arange(5), np.array([5]))
        writer.finalize()
    Path(f"{prefix}.json").write_text(content)
    with pytest.raises(ValueError, match=r"web\.json: describes other content .* delete the \.json"):
        IndexedCorpus(prefix).metadata  # noqa: B018
    Path(f"{prefix}.json").unlink()
    assert IndexedCorpus(prefix).tokenizer is None
