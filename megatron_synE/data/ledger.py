"""The ledger: what any range of samples reads, computed from the stream and never logged.

Samples of a component are consecutive in its order, so a range of global samples is one range of tokens per component,
and the documents in it are a slice of the order of each epoch that it touches.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from megatron_synE.data.components import Component
from megatron_synE.data.stream import DataStream


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


def documents_of(stream: DataStream, ranges: Sequence[range]) -> list[dict[str, Any]]:
    """`documents_read` of several ranges as JSON: component, corpus, epoch, documents."""
    return [
        {"component": r.component, "corpus": r.prefix, "epoch": r.epoch, "documents": r.documents.tolist()}
        for part in ranges
        for r in documents_read(stream, part.start, part.stop)
    ]


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
