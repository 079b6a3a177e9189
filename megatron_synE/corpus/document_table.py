"""``{prefix}.documents.arrow``, the document table: from which input, line and page each document of a corpus came.

An uncompressed Arrow IPC file, memory-mapped: row i is document i. Columns: ``id`` (string, null without an id key),
``file`` (int32, an index into the inputs that the schema's metadata lists), ``line`` (int64, counted from 1; for
Parquet the row), and one string column per kept key. Every batch but the last has ``ROWS_PER_BATCH`` rows, so a row is
found by a division, and carries a checksum of its values, which is compared whenever the batch is read.
"""

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow
import pyarrow.compute
import pyarrow.ipc
import xxhash

from megatron_synE.corpus.indexed import IndexedCorpus

TABLE_FORMAT_VERSION = 1
ROWS_PER_BATCH = 8192
FIXED_FIELDS = (
    pyarrow.field("id", pyarrow.string()),
    pyarrow.field("file", pyarrow.int32(), nullable=False),
    pyarrow.field("line", pyarrow.int64(), nullable=False),
)
REMEDY = "tokenise the corpus again, or delete this file to use the corpus without it"


@dataclass(frozen=True)
class DocumentRecord:
    """Where a document came from."""

    id: str | None
    """The value of the id key; None without one."""
    file: str
    """The input file, as it was named on the command line."""
    line: int
    """Line of the input, counted from 1; for Parquet the row."""
    keys: dict[str, str | None]
    """The kept keys; a value that was not a string is JSON, a missing one None."""


def document_table_path(prefix: str | Path) -> Path:
    """Where the table of a corpus lies."""
    return Path(f"{prefix}.documents.arrow")


def table_schema(keep_keys: Sequence[str]) -> pyarrow.Schema:
    """The columns of a table that keeps these keys of the input.

    Raises:
        ValueError: a key has the name of a column that every table has, or is named twice.
    """
    fixed = [field.name for field in FIXED_FIELDS]
    for key in keep_keys:
        if key in fixed or list(keep_keys).count(key) > 1:
            reason = "every table has a column of that name" if key in fixed else "it is named twice"
            raise ValueError(f"--keep-keys {key}: {reason}; leave it out (--id-key names the key of the id)")
    return pyarrow.schema([*FIXED_FIELDS, *(pyarrow.field(key, pyarrow.string()) for key in keep_keys)])


def write_document_table(
    path: Path, batches: Iterable[pyarrow.RecordBatch], schema: pyarrow.Schema, inputs: Sequence[str], fingerprint: str
) -> None:
    """Write a table to ``path`` in bounded memory; the caller brings it to disk and renames it.

    Args:
        path: of the new file.
        batches: rows in the order of the documents, any number in each, with the columns of ``schema``.
        schema: from ``table_schema``.
        inputs: what ``file`` counts.
        fingerprint: of the corpus's content.
    """
    keep_keys = schema.names[len(FIXED_FIELDS) :]
    content = {
        "format_version": TABLE_FORMAT_VERSION,
        "fingerprint": fingerprint,
        "inputs": list(inputs),
        "keep_keys": keep_keys,
    }
    text = json.dumps(content, ensure_ascii=False, sort_keys=True).encode()
    metadata = {b"documents": text, b"checksum": xxhash.xxh3_128_hexdigest(text).encode()}
    with pyarrow.OSFile(str(path), "wb") as sink, pyarrow.ipc.new_file(sink, schema.with_metadata(metadata)) as writer:
        for batch in _of_equal_size(batches, schema):
            writer.write_batch(batch, custom_metadata={b"checksum": _checksum(batch).encode()})


class DocumentTable:
    """The table of a corpus, memory-mapped; opening it reads its last batch.

    Args:
        prefix: of the corpus.
        corpus: to which it must belong.

    Raises:
        ValueError: there is none, it is damaged, or it belongs to other content; the message names the file.
    """

    inputs: list[str]
    """The files that the corpus was made of."""
    key_names: list[str]
    """The kept keys."""

    def __init__(self, prefix: str | Path, corpus: IndexedCorpus) -> None:
        self.path = document_table_path(prefix)
        try:
            self._reader = pyarrow.ipc.open_file(pyarrow.memory_map(str(self.path)))
        except FileNotFoundError as error:
            raise ValueError(
                f"{self.path}: no such file; preprocess_data writes it beside a corpus, older versions did not"
            ) from error
        except (pyarrow.ArrowException, OSError) as error:
            raise ValueError(f"{self.path}: not a readable document table ({error}); {REMEDY}") from error
        content = self._metadata()
        if content["fingerprint"] != corpus.fingerprint:
            raise ValueError(f"{self.path}: belongs to other content than {corpus.bin_path} holds; {REMEDY}")
        self.inputs, self.key_names = content["inputs"], content["keep_keys"]
        if not self._reader.schema.equals(table_schema(self.key_names)):
            raise ValueError(f"{self.path}: its columns are damaged; {REMEDY}")
        last = self._reader.num_record_batches - 1
        self._num_rows = last * ROWS_PER_BATCH + self._batch(last).num_rows if last >= 0 else 0
        if len(self) != corpus.num_documents:
            raise ValueError(
                f"{self.path}: has {len(self)} rows, but the corpus {corpus.num_documents} documents; {REMEDY}"
            )

    def __len__(self) -> int:
        return self._num_rows

    def row(self, document: int) -> DocumentRecord:
        """Where document ``document`` came from."""
        return self.rows([document])[0]

    def rows(self, documents: Sequence[int] | npt.NDArray[np.integer]) -> list[DocumentRecord]:
        """Where these documents came from, in the order asked for; each batch they lie in is read once."""
        return [
            DocumentRecord(row.pop("id"), self.inputs[row.pop("file")], row.pop("line"), row)
            for row in self.take(documents).to_pylist()
        ]

    def take(self, documents: Sequence[int] | npt.NDArray[np.integer]) -> pyarrow.Table:
        """The rows of these documents as columns, in the order asked for."""
        wanted = np.asarray(documents, dtype=np.int64)
        if len(wanted) and not 0 <= wanted.min() <= wanted.max() < len(self):
            raise IndexError(f"{self.path}: document {wanted.min()} to {wanted.max()} of {len(self)}")
        order = np.argsort(wanted, kind="stable")
        by_batch = np.split(wanted[order], np.flatnonzero(np.diff(wanted[order] // ROWS_PER_BATCH)) + 1)
        pieces = [
            self._batch(int(rows[0]) // ROWS_PER_BATCH).take(pyarrow.array(rows % ROWS_PER_BATCH))
            for rows in by_batch
            if len(rows)
        ]
        table = pyarrow.Table.from_batches(pieces, self._reader.schema)
        return table.take(pyarrow.array(np.argsort(order, kind="stable")))

    def batches(self) -> Iterator[pyarrow.RecordBatch]:
        """All rows, in order and piece by piece; a damaged piece raises ValueError."""
        return map(self._batch, range(self._reader.num_record_batches))

    def _metadata(self) -> dict[str, Any]:
        metadata: Mapping[bytes, bytes] = self._reader.schema.metadata or {}
        text = metadata.get(b"documents", b"")
        if metadata.get(b"checksum", b"").decode("ascii", "replace") != xxhash.xxh3_128_hexdigest(text):
            raise ValueError(f"{self.path}: its metadata is damaged, or it is no document table; {REMEDY}")
        content: dict[str, Any] = json.loads(text)
        if content["format_version"] != TABLE_FORMAT_VERSION:
            raise ValueError(
                f"{self.path}: format {content['format_version']}; this version reads {TABLE_FORMAT_VERSION}; {REMEDY}"
            )
        return content

    def _batch(self, number: int) -> pyarrow.RecordBatch:
        first = number * ROWS_PER_BATCH
        damaged = f"{self.path}: damaged from document {first} on; {REMEDY}"
        try:
            batch, metadata = self._reader.get_batch_with_custom_metadata(number)
            batch.validate(full=True)  # offsets within their buffers: the checksum reads what they point to
            recorded = (metadata or {}).get(b"checksum", b"")
        except (pyarrow.ArrowException, OSError) as error:
            raise ValueError(f"{damaged} ({error})") from error
        last = number == self._reader.num_record_batches - 1
        fits = 0 < batch.num_rows <= ROWS_PER_BATCH if last else batch.num_rows == ROWS_PER_BATCH
        if not fits or recorded != _checksum(batch).encode():
            raise ValueError(damaged)
        return batch


def _of_equal_size(batches: Iterable[pyarrow.RecordBatch], schema: pyarrow.Schema) -> Iterator[pyarrow.RecordBatch]:
    """The same rows, ``ROWS_PER_BATCH`` in each batch but the last."""
    pending: list[pyarrow.RecordBatch] = []
    num_pending = 0

    def joined() -> pyarrow.RecordBatch:
        arrays = [pyarrow.concat_arrays([batch.column(name) for batch in pending]) for name in schema.names]
        return pyarrow.RecordBatch.from_arrays(arrays, schema=schema)

    for batch in batches:
        while batch.num_rows:
            part = batch.slice(0, ROWS_PER_BATCH - num_pending)
            batch = batch.slice(part.num_rows)
            pending.append(part)
            num_pending += part.num_rows
            if num_pending == ROWS_PER_BATCH:
                yield joined()
                pending, num_pending = [], 0
    if pending:
        yield joined()


def _checksum(batch: pyarrow.RecordBatch) -> str:
    """xxh3_128, in hexadecimal digits, of a batch's values, however its buffers are laid out."""
    digest = xxhash.xxh3_128()
    for column in batch.columns:
        digest.update(column.is_null().to_numpy(zero_copy_only=False).tobytes())
        if pyarrow.types.is_string(column.type):
            offsets = np.frombuffer(column.buffers()[1], np.int32)[column.offset : column.offset + len(column) + 1]
            digest.update((offsets - offsets[0]).tobytes())
            data = column.buffers()[2]
            if data is not None:
                digest.update(memoryview(data)[offsets[0] : offsets[-1]])
        else:
            digest.update(column.to_numpy(zero_copy_only=False).tobytes())
    return digest.hexdigest()
