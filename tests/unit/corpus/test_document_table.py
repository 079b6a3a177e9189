"""The document table: rows at their places, whatever the batches were, and no damage that goes unseen."""

import random
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow
import pytest

from megatron_synE.corpus.document_table import (
    ROWS_PER_BATCH,
    DocumentRecord,
    DocumentTable,
    document_table_path,
    table_schema,
    write_document_table,
)
from megatron_synE.corpus.indexed import IndexedCorpus
from tests.helpers.corpora import write_corpus

NUM_DOCUMENTS = 2 * ROWS_PER_BATCH + 77


def record(document: int) -> DocumentRecord:
    """What is stored of a document here: every third has no id, every fifth no url."""
    url = None if document % 5 == 0 else f"https://example.org/页/{document}"
    id_ = None if document % 3 == 0 else f"doc-{document}"
    return DocumentRecord(id_, ["a.jsonl", "b.parquet"][document % 2], document + 1, {"url": url})


def write_table(prefix: Path, fingerprint: str, num_documents: int, rows_per_batch: int) -> None:
    schema = table_schema(["url"])

    def batch(first: int) -> pyarrow.RecordBatch:
        rows = [record(i) for i in range(first, min(first + rows_per_batch, num_documents))]
        files = [["a.jsonl", "b.parquet"].index(row.file) for row in rows]
        columns = [[row.id for row in rows], files, [row.line for row in rows], [row.keys["url"] for row in rows]]
        arrays = [pyarrow.array(column, field.type) for column, field in zip(columns, schema, strict=True)]
        return pyarrow.RecordBatch.from_arrays(arrays, schema=schema)

    batches = map(batch, range(0, num_documents, rows_per_batch))
    write_document_table(document_table_path(prefix), batches, schema, ["a.jsonl", "b.parquet"], fingerprint)


@pytest.fixture(scope="module")
def prefix(tmp_path_factory: pytest.TempPathFactory) -> Path:
    prefix = tmp_path_factory.mktemp("table") / "c"
    fingerprint = write_corpus(prefix, [[1]] * NUM_DOCUMENTS) and IndexedCorpus(prefix).fingerprint
    write_table(prefix, fingerprint, NUM_DOCUMENTS, rows_per_batch=1000)
    return prefix


def test_every_document_has_its_row(prefix: Path) -> None:
    table = DocumentTable(prefix, IndexedCorpus(prefix))
    assert len(table) == NUM_DOCUMENTS and table.key_names == ["url"] and table.inputs == ["a.jsonl", "b.parquet"]
    assert table.rows(np.arange(NUM_DOCUMENTS)) == [record(i) for i in range(NUM_DOCUMENTS)]
    wanted = random.Random(0).choices(range(NUM_DOCUMENTS), k=50)  # in any order, some twice
    assert table.rows(wanted) == [record(i) for i in wanted]
    assert table.take(wanted).column("line").to_pylist() == [i + 1 for i in wanted]
    assert table.row(ROWS_PER_BATCH) == record(ROWS_PER_BATCH) and table.rows([]) == []
    assert sum(batch.num_rows for batch in table.batches()) == NUM_DOCUMENTS
    for outside in (-1, NUM_DOCUMENTS):
        with pytest.raises(IndexError):
            table.row(outside)


def test_how_the_rows_arrive_changes_no_byte(prefix: Path, tmp_path: Path) -> None:
    for rows_per_batch in (1, 20_000):
        write_table(tmp_path / "c", IndexedCorpus(prefix).fingerprint, NUM_DOCUMENTS, rows_per_batch)
        assert document_table_path(tmp_path / "c").read_bytes() == document_table_path(prefix).read_bytes()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda path: path.unlink(), "no such file"),
        (lambda path: path.write_bytes(b""), "not a readable document table"),
        (lambda path: path.write_bytes(path.read_bytes()[:-100]), "not a readable document table"),
        (lambda path: write_table(path.parent / "c", "0" * 32, 5, 5), "belongs to other content"),
        (lambda path: write_table(path.parent / "c", IndexedCorpus(path.parent / "c").fingerprint, 4, 4), "4 rows"),
    ],
)
def test_a_table_that_is_not_the_corpus_s_is_refused(
    tmp_path: Path, change: Callable[[Path], object], message: str
) -> None:
    write_corpus(tmp_path / "c", [[1]] * 5)
    corpus = IndexedCorpus(tmp_path / "c")
    write_table(tmp_path / "c", corpus.fingerprint, 5, 5)
    assert len(DocumentTable(tmp_path / "c", corpus)) == 5
    change(document_table_path(tmp_path / "c"))
    with pytest.raises(ValueError, match=message) as caught:
        DocumentTable(tmp_path / "c", corpus)
    assert "c.documents.arrow" in str(caught.value)


def test_no_flipped_bit_changes_what_is_read(tmp_path: Path) -> None:
    """At random places, and at many of the first and last kilobyte, where schema and footer are."""
    write_corpus(tmp_path / "c", [[1]] * 500)
    corpus, path, rng = IndexedCorpus(tmp_path / "c"), document_table_path(tmp_path / "c"), random.Random(1)
    write_table(tmp_path / "c", corpus.fingerprint, 500, 500)
    data = path.read_bytes()
    ranges = [range(len(data)), range(1024), range(len(data) - 1024, len(data))]
    num_refused = 0
    for attempt in range(300):
        place = rng.choice(ranges[attempt % 3])
        flipped = data[place] ^ (1 << rng.randrange(8))
        path.write_bytes(data[:place] + bytes([flipped]) + data[place + 1 :])
        try:
            found = DocumentTable(tmp_path / "c", corpus).rows(range(500))
        except ValueError:
            num_refused += 1
        else:
            assert found == [record(i) for i in range(500)], place
    assert num_refused > 200


@pytest.mark.parametrize(("keys", "message"), [(["url", "url"], "named twice"), (["line"], "column of that name")])
def test_keys_that_cannot_be_columns_are_refused(keys: list[str], message: str) -> None:
    with pytest.raises(ValueError, match=f"--keep-keys .*{message}"):
        table_schema(keys)
