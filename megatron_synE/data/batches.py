"""From samples to arrays for the model.

Legend: B samples, S tokens in a sample, D documents in a batch.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Batch:
    """B samples of S tokens; with isolated documents the four arrays are packed to [1, B·S]."""

    tokens_BS: np.ndarray
    """int64 token ids."""
    labels_BS: np.ndarray
    """int64 the token after each."""
    loss_mask_BS: np.ndarray
    """float32 1 where the prediction of the label counts, else 0."""
    position_ids_BS: np.ndarray
    """int64 positions; they restart at each document when documents are isolated."""
    component_B: np.ndarray
    """int32[B] index into the stream's component names."""
    cu_seqlens: np.ndarray | None
    """int32[D+1] starts of the isolated documents and B·S; a sample's border is always a document's. None otherwise."""


def assemble(
    rows: np.ndarray,
    starts: Sequence[Sequence[int]],
    component_B: np.ndarray,
    *,
    isolate_documents: bool,
    eod_mask_loss: bool,
    valid_tokens: Sequence[int] | None = None,
) -> Batch:
    """A batch from tokens that were read.

    Args:
        rows: int64[B, S+1] tokens of each sample and the label of its last.
        starts: per sample, ascending places in its row where a document starts.
        valid_tokens: per sample, how many of the row's tokens are real; the rest is padding. None: all.
    """
    batch_size, seq_length = rows.shape[0], rows.shape[1] - 1
    loss_mask_BS = np.ones((batch_size, seq_length), np.float32)
    for row, valid in enumerate(valid_tokens or ()):
        loss_mask_BS[row, max(0, valid - 1) :] = 0
    if isolate_documents or eod_mask_loss:
        for row, places in enumerate(starts):
            # The prediction of a document's first token would be made from the document before it.
            loss_mask_BS[row, [place - 1 for place in places if place > 0]] = 0
    tokens_BS, labels_BS = np.ascontiguousarray(rows[:, :-1]), np.ascontiguousarray(rows[:, 1:])
    if not isolate_documents:
        position_ids_BS = np.empty((batch_size, seq_length), np.int64)
        position_ids_BS[:] = np.arange(seq_length)
        return Batch(tokens_BS, labels_BS, loss_mask_BS, position_ids_BS, component_B, None)
    packed_starts: list[int] = []
    for row, places in enumerate(starts):
        packed_starts.append(row * seq_length)
        packed_starts += [row * seq_length + place for place in places if 0 < place < seq_length]
    packed_starts.append(batch_size * seq_length)
    counting, positions = np.arange(seq_length, dtype=np.int64), np.empty(batch_size * seq_length, np.int64)
    for first, end in itertools.pairwise(packed_starts):
        positions[first:end] = counting[: end - first]
    return Batch(
        tokens_BS.reshape(1, -1),
        labels_BS.reshape(1, -1),
        loss_mask_BS.reshape(1, -1),
        positions.reshape(1, -1),
        component_B,
        np.array(packed_starts, np.int32),
    )


def check_tokens(rows: np.ndarray, vocab_size: int, place_of: Callable[[int, int], tuple[str, int]]) -> None:
    """ValueError when a token of rows int64[B, S+1] is not in a vocabulary of `vocab_size`.

    The model's embedding has more rows than that where it is padded, and each of its parallel shards takes a token of
    none of them for zero: such tokens would train in silence.

    Args: place_of: row and place in it → prefix of the corpus and number of the document that the token comes from.
    """
    if not rows.size or (rows.min() >= 0 and rows.max() < vocab_size):
        return
    row, place = (int(n) for n in np.argwhere((rows < 0) | (rows >= vocab_size))[0])
    prefix, document = place_of(row, place)
    raise ValueError(
        f"{prefix}: document {document} holds token {rows[row, place]}, but the model's vocabulary has {vocab_size}; "
        "tokenise it with the model's tokenizer, or choose the model that fits (tools/verify_corpus.py finds all)"
    )
