"""Small corpora for tests of the data stream."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow

from megatron_synE.corpus.annotations import write_annotation, write_labels
from megatron_synE.corpus.document_table import DocumentRecord, document_table_path, table_schema, write_document_table
from megatron_synE.corpus.indexed import IndexedCorpus
from megatron_synE.corpus.indexed_writer import IndexedCorpusWriter

ANNOTATOR = {"name": "test"}


def random_documents(
    rng: np.random.Generator, num_documents: int, low: int = 2, high: int = 40, vocab_size: int = 5000
) -> list[list[int]]:
    """Documents of low to high-1 tokens."""
    return [rng.integers(0, vocab_size, rng.integers(low, high)).tolist() for _ in range(num_documents)]


def write_corpus(
    prefix: Path,
    documents: Sequence[Sequence[int]],
    *,
    topics: Sequence[int] | None = None,
    names: Sequence[str] = (),
    perplexity: Sequence[float] | None = None,
    dtype: Any = np.uint16,
) -> str:
    """A corpus with its annotations; returns the prefix."""
    with IndexedCorpusWriter(prefix, dtype) as writer:
        tokens = np.array([token for document in documents for token in document], np.int64)
        writer.add_documents(tokens, np.array([len(document) for document in documents]))
        fingerprint = writer.finalize()
    if topics is not None:
        write_labels(prefix, np.array(topics, np.int16), names, fingerprint, ANNOTATOR)
    if perplexity is not None:
        write_annotation(prefix, "perplexity", np.array(perplexity, np.float32), fingerprint, ANNOTATOR)
    return str(prefix)


def write_table(prefix: str, rows: Sequence[DocumentRecord], fingerprint: str | None = None) -> None:
    """The document table of a corpus; all rows have the same keys."""
    keys, inputs = list(rows[0].keys), list(dict.fromkeys(row.file for row in rows))
    columns: list[list[Any]] = [[r.id for r in rows], [inputs.index(r.file) for r in rows], [r.line for r in rows]]
    columns += [[row.keys[key] for row in rows] for key in keys]
    schema = table_schema(keys)
    arrays = [pyarrow.array(column, field.type) for column, field in zip(columns, schema, strict=True)]
    batch = pyarrow.RecordBatch.from_arrays(arrays, schema=schema)
    write_document_table(
        document_table_path(prefix), [batch], schema, inputs, fingerprint or IndexedCorpus(prefix).fingerprint
    )
