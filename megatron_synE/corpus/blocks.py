"""A corpus from end to end in pieces of bounded size, each of whole documents.

The tokens are read, not mapped: pages of a mapping would count as the memory of this process.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from megatron_synE.corpus.indexed import IndexedCorpus

BLOCK_TOKENS = 1 << 21
BLOCK_DOCUMENTS = 1 << 15


@dataclass(frozen=True)
class DocumentBlock:
    """Consecutive documents of a corpus."""

    first: int
    """Number of the first one."""
    tokens: npt.NDArray[Any]
    """[N] their tokens end to end, in the corpus's dtype."""
    sequence_lengths: npt.NDArray[np.int32]
    """[S] tokens per sequence."""
    sequences_per_document: npt.NDArray[np.int64]
    """[D]"""
    starts: npt.NDArray[np.int64]
    """[D + 1] document first + i is tokens [starts[i], starts[i + 1])."""

    @property
    def num_documents(self) -> int:
        return len(self.starts) - 1

    def documents(self) -> Iterator[npt.NDArray[Any]]:
        """The tokens of each document, as views."""
        for start, end in zip(self.starts[:-1].tolist(), self.starts[1:].tolist(), strict=True):
            yield self.tokens[start:end]


def iter_blocks(
    corpus: IndexedCorpus, first: int = 0, end: int | None = None, *, block_tokens: int = BLOCK_TOKENS
) -> Iterator[DocumentBlock]:
    """Documents [first, end) in blocks of about ``block_tokens``; a longer document is a block of its own.

    The index is taken to be sound (``verify.check_index``).

    Raises:
        ValueError: the files are not those that were opened.
    """
    end = corpus.num_documents if end is None else end
    with open(corpus.bin_path, "rb") as file:
        while first < end:
            bounds = corpus.document_boundaries[first : min(end, first + BLOCK_DOCUMENTS) + 1]
            lengths = corpus.sequence_lengths[bounds[0] : bounds[-1]]
            ends = np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)])
            starts = ends[bounds - bounds[0]]
            count = max(1, int(np.searchsorted(starts, block_tokens, side="right")) - 1)
            bounds, starts = bounds[: count + 1], starts[: count + 1]
            num_sequences = int(bounds[-1] - bounds[0])
            if num_sequences:
                file.seek(int(corpus.sequence_offsets[bounds[0]]))
            tokens = np.fromfile(file, corpus.dtype, int(starts[-1]))
            if len(tokens) < starts[-1]:
                corpus.check_unchanged()
                raise ValueError(f"{corpus.bin_path}: ends within document {first + count - 1}; restore it")
            yield DocumentBlock(first, tokens, lengths[:num_sequences], np.diff(bounds), starts)
            first += count
    corpus.check_unchanged()


def without_eod(tokens: npt.NDArray[Any], eod_id: int | None) -> npt.NDArray[Any]:
    """The tokens [length] of a document without the one that marks its end, if it has one."""
    return tokens[:-1] if eod_id is not None and len(tokens) and tokens[-1] == eod_id else tokens
