"""Single samples as text."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np

from megatron_synE.data.ledger import DocumentTables, SampleRead, Span


def sample_as_json(
    read: SampleRead, tables: DocumentTables, decode: Callable[[np.ndarray], str]
) -> dict[str, object]:
    """A sample with each document in it: number, where its text came from, and the text that this sample reads."""
    rows = tables.rows(read.prefix, [span.document for span in read.spans])
    documents = []
    for number, span in enumerate(read.spans):
        entry: dict[str, object] = {
            "document": span.document,
            "epoch": span.epoch,
            "tokens": [span.first, span.end],
            "tokens_of_document": [span.document_first, span.document_first + span.end - span.first],
            "document_length": span.document_length,
        }
        if rows is not None:
            row = rows[number]
            entry |= {"id": row.id, "keys": row.keys, "file": row.file, "line": row.line}
        documents.append({**entry, "text": decode(read.tokens[span.first : span.end])})
    return {
        "sample": read.sample,
        "component": read.component,
        "corpus": read.prefix,
        "sample_of_component": read.index,
        "documents": documents,
    }


def sample_text(
    read: SampleRead, tables: DocumentTables, decode: Callable[[np.ndarray], str]
) -> Iterator[str]:
    """The same to read: a line about the sample, then each document's border and its text."""
    yield (
        f"sample {read.sample:,}: {read.component}, its sample {read.index:,}; {len(read.tokens):,} tokens of "
        f"{len(read.spans)} documents of {read.prefix}"
    )
    rows = tables.rows(read.prefix, [span.document for span in read.spans])
    for number, span in enumerate(read.spans):
        told = [f"document {span.document:,}"]
        if rows is not None:
            row = rows[number]
            told += [row.id] if row.id is not None else []
            told += [f"{key} {value}" for key, value in row.keys.items() if value is not None]
            told.append(f"{row.file}:{row.line}")
        yield f"--- {', '.join(told)}\n    {_extent(span)}"
        yield decode(read.tokens[span.first : span.end])


def _extent(span: Span) -> str:
    stop = span.document_first + span.end - span.first
    extent = f"tokens {span.document_first:,} to {stop:,} of {span.document_length:,}"
    return f"{extent}, epoch {span.epoch}, from token {span.first:,} of the sample on"
