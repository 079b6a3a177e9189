"""The ledger: what any range of samples reads, computed from the stream and never logged.

Samples of a component are consecutive in its order, so a range of global samples is one range of tokens per component,
and the documents in it are a slice of the order of each epoch that it touches. Where a corpus has a document table, the
ledger names the documents' ids, kept keys (url, source, date …) and places in the input; else their numbers only.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from megatron_synE.data.components import Component
from megatron_synE.data.stream import DataStream

if TYPE_CHECKING:
    from megatron_synE.corpus.document_table import DocumentRecord, DocumentTable

DOCUMENTS_PER_PIECE = 1 << 16


@dataclass(frozen=True)
class Entry:
    """What a range of samples reads of one component."""

    component: str
    samples: int
    tokens: int
    share: float
    """Of the range's tokens."""
    documents: int
    """Documents of which at least one token is read; one that is read in two epochs counts twice."""
    first_epoch: float
    """Epochs read before the range: 1.5 is half of the second pass."""
    last_epoch: float
    """Epochs read at its end."""
    repeated_tokens: int
    """Tokens of the range that an earlier epoch read before."""


@dataclass(frozen=True)
class DocumentsRead:
    """Documents of one epoch of one component, in the order they are read."""

    component: str
    prefix: str
    """The corpus in which the numbers count."""
    epoch: int
    documents: np.ndarray
    """int32[N] document numbers; the first and the last may be read in part."""


@dataclass(frozen=True)
class Span:
    """What a sample holds of one document."""

    document: int
    """Its number in the corpus."""
    epoch: int
    first: int
    """Its tokens are [first, end) of the sample."""
    end: int
    document_first: int
    """The first of them, counted in the document."""
    document_length: int
    """Tokens of the whole document."""


@dataclass(frozen=True)
class SampleRead:
    """One global sample."""

    sample: int
    component: str
    prefix: str
    """The corpus in which document numbers count."""
    index: int
    """The sample's number in its component."""
    tokens: np.ndarray
    """int64[S] its inputs; the label of the last one is the first of the component's next sample."""
    spans: list[Span]
    """The documents in it, in order; together all of `tokens`."""


def ledger(stream: DataStream, first: int, end: int) -> list[Entry]:
    """One entry per component for global samples [first, end)."""
    entries = []
    for component, (start, stop) in zip(stream.components, component_ranges(stream, first, end), strict=True):
        first_token, end_token = start * stream.seq_length, stop * stream.seq_length
        entries.append(
            Entry(
                component=component.name,
                samples=stop - start,
                tokens=end_token - first_token,
                share=(stop - start) / max(1, end - first),
                documents=sum(len(places) for _, places in epoch_slices(component, start, stop)),
                first_epoch=first_token / component.num_tokens,
                last_epoch=end_token / component.num_tokens,
                repeated_tokens=max(0, end_token - max(first_token, component.num_tokens)),
            )
        )
    return entries


def documents_read(stream: DataStream, first: int, end: int) -> Iterator[DocumentsRead]:
    """The exact documents whose tokens are inputs of global samples [first, end), by component and epoch.

    The label after a sample's last token belongs to the sample that reads it as input.
    """
    for component, (start, stop) in zip(stream.components, component_ranges(stream, first, end), strict=True):
        for epoch, places in epoch_slices(component, start, stop):
            order = component.epoch(epoch, (stop - 1) * component.seq_length).order
            documents = order[places.start : places.stop]
            yield DocumentsRead(component.name, component.source.config.prefix, epoch, documents)


class DocumentTables:
    """The document tables beside a stream's corpora; each is opened when it is first asked for."""

    def __init__(self, stream: DataStream) -> None:
        self._corpora = {c.source.config.prefix: c.source.corpus for c in stream.components}
        self._tables: dict[str, DocumentTable | None] = {}

    def of(self, prefix: str) -> DocumentTable | None:
        """The table of a corpus; None where it has none.

        Raises:
            ValueError: it is damaged, or of other content.
        """
        if prefix not in self._tables:
            # A trainer that never asks for documents does without Arrow, which starts a thread when it is imported.
            from megatron_synE.corpus.document_table import DocumentTable, document_table_path

            there = document_table_path(prefix).exists()
            self._tables[prefix] = DocumentTable(prefix, self._corpora[prefix]) if there else None
        return self._tables[prefix]

    def rows(self, prefix: str, documents: Sequence[int] | np.ndarray) -> list[DocumentRecord] | None:
        """Where documents of a corpus came from; None without a table."""
        table = self.of(prefix)
        return None if table is None else table.rows(documents)


def documents_of(stream: DataStream, ranges: Sequence[range]) -> list[dict[str, Any]]:
    """`documents_read` of several ranges as JSON, in pieces of `DOCUMENTS_PER_PIECE`."""
    return list(itertools.chain.from_iterable(documents_as_json(stream, part.start, part.stop) for part in ranges))


def documents_as_json(stream: DataStream, first: int, end: int) -> Iterator[dict[str, Any]]:
    """`documents_read` as JSON: `component`, `corpus`, `epoch`, `documents` (numbers); with a document table `places`
    (file:line) and, where it has them, `ids` and `keys` (kept key → values), all in the order of `documents`.

    A table that cannot be read is named in `table_problem`: the numbers are right without it.
    """
    tables = DocumentTables(stream)
    for read in documents_read(stream, first, end):
        for start in range(0, len(read.documents), DOCUMENTS_PER_PIECE):
            documents = read.documents[start : start + DOCUMENTS_PER_PIECE]
            entry = {"component": read.component, "corpus": read.prefix, "epoch": read.epoch}
            yield {**entry, "documents": documents.tolist(), **_named(tables, read.prefix, documents)}


def _named(tables: DocumentTables, prefix: str, documents: np.ndarray) -> dict[str, Any]:
    try:
        rows = tables.rows(prefix, documents)
    except ValueError as error:
        return {"table_problem": str(error)}
    if not rows:
        return {}
    found: dict[str, Any] = {"places": [f"{row.file}:{row.line}" for row in rows]}
    if any(row.id is not None for row in rows):
        found["ids"] = [row.id for row in rows]
    if rows[0].keys:
        found["keys"] = {key: [row.keys[key] for row in rows] for key in rows[0].keys}
    return found


def sample_read(stream: DataStream, sample: int) -> SampleRead:
    """What one global sample holds.

    Raises:
        ValueError: it is not in the stream, or its component would exceed its max_epochs.
    """
    if not 0 <= sample < stream.num_samples:
        raise ValueError(f"sample {sample} leaves the stream of {stream.num_samples}")
    numbers, indices = stream.locate(np.array([sample]))
    component, index = stream.components[int(numbers[0])], int(indices[0])
    tokens = np.empty(component.seq_length + 1, np.int64)
    component.read(index, tokens)
    spans, filled, at = [], 0, index * component.seq_length
    while filled < component.seq_length:
        epoch, offset = divmod(at + filled, component.num_tokens)
        end = min(offset + component.seq_length - filled, component.num_tokens)
        run = component.epoch(epoch, at)
        places = run.places(offset, end)
        for place in range(places.start, places.stop):
            start, stop = max(offset, int(run.ends[place])), min(end, int(run.ends[place + 1]))
            document_length = int(run.ends[place + 1] - run.ends[place])
            spans.append(
                Span(
                    document=int(run.order[place]),
                    epoch=epoch,
                    first=filled + start - offset,
                    end=filled + stop - offset,
                    document_first=start - int(run.ends[place]),
                    document_length=document_length,
                )
            )
        filled += end - offset
    return SampleRead(sample, component.name, component.source.config.prefix, index, tokens[:-1], spans)


def component_ranges(stream: DataStream, first: int, end: int) -> Sequence[tuple[int, int]]:
    """[C] the samples [start, stop) of each component that global samples [first, end) read."""
    if not 0 <= first <= end <= stream.num_samples:
        raise ValueError(f"samples {first} to {end} leave the stream of {stream.num_samples}")
    cursors = stream.timeline.cursors(first), stream.timeline.cursors(end)
    return [(int(start), int(stop)) for start, stop in zip(*cursors, strict=True)]


def epoch_slices(component: Component, start: int, stop: int) -> Iterator[tuple[int, range]]:
    """Epochs that samples [start, stop) touch, with the places of their order; whole epochs open no index."""
    first_token, end_token = start * component.seq_length, stop * component.seq_length
    token = first_token
    while token < end_token:
        epoch, offset = divmod(token, component.num_tokens)
        length = min(end_token - token, component.num_tokens - offset)
        if length == component.num_tokens:
            yield epoch, range(component.num_documents)
        else:
            run = component.epoch(epoch, (stop - 1) * component.seq_length)
            places = run.places(offset, offset + length)
            yield epoch, range(places.start, places.stop)
        token += length
