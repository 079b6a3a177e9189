"""Held-out samples of a component: what its perplexity is measured on, and what never trains.

A document is held out when its content hash is below the held-out fraction of 2^64, wherever and whenever it stands in
a corpus: appending documents moves none from one side to the other, and copies in other sources do not train either.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from megatron_synE.data.batches import Batch, assemble, check_tokens
from megatron_synE.data.components import DocumentRun, threshold_of

PADDING_TOKEN = 0


class HeldoutSet:
    """Samples packed from a component's held-out documents by ascending content hash; the last one is padded."""

    def __init__(
        self,
        documents: DocumentRun,
        component: int,
        seq_length: int,
        max_samples: int,
        isolate_documents: bool,
        eod_mask_loss: bool,
        vocab_size: int | None = None,
    ) -> None:
        self.documents, self.component, self.seq_length = documents, component, seq_length
        self.isolate_documents, self.eod_mask_loss = isolate_documents, eod_mask_loss
        self.vocab_size = vocab_size
        # A token that is first in the set is never a label: T tokens give T - 1 predictions.
        self._num_samples = min(max_samples, max(0, -(-(documents.num_tokens - 1) // seq_length)))

    def __len__(self) -> int:
        return self._num_samples

    def batch(self, indices: Sequence[int] | np.ndarray) -> Batch:
        """Samples `indices`, each below len(self); padding has token 0 and loss mask 0.

        Raises: IndexError outside; ValueError for a token that the model's vocabulary does not have, and for a corpus
            that changed since it was opened.
        """
        rows = np.full((len(indices), self.seq_length + 1), PADDING_TOKEN, np.int64)
        starts, valid_tokens = [], []
        for row, index in enumerate(indices):
            if not 0 <= index < len(self):
                raise IndexError(f"held-out sample {index} of {len(self)}")
            offset = int(index) * self.seq_length
            valid = min(self.seq_length + 1, self.documents.num_tokens - offset)
            places = [int(place) for place in self.documents.read(offset, rows[row, :valid])]
            starts.append(places if valid == rows.shape[1] else [*places, valid])
            valid_tokens.append(valid)
        self.documents.corpus.check_unchanged()
        if self.vocab_size is not None:
            check_tokens(rows, self.vocab_size, lambda row, place: self._place_of(int(indices[row]), place))
        return assemble(
            rows,
            starts,
            np.full(len(indices), self.component, np.int32),
            isolate_documents=self.isolate_documents,
            eod_mask_loss=self.eod_mask_loss,
            valid_tokens=valid_tokens,
        )

    def _place_of(self, index: int, place: int) -> tuple[str, int]:
        return self.documents.corpus.prefix, self.documents.document_at(index * self.seq_length + place)


def smallest_heldout_fraction(hashes: np.ndarray) -> float | None:
    """The smallest fraction that holds out one of the documents with these content hashes, uint64[N]; None without any.

    Exact: the float64 below it holds out none.
    """
    if not len(hashes):
        return None
    threshold = int(hashes.min()) + 1
    fraction = threshold / 2**64
    if threshold_of(fraction) < threshold:  # the division was rounded down
        fraction = math.nextafter(fraction, 1.0)
    return fraction if fraction < 1 else None
