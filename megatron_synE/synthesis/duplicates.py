"""Which texts were there before, among very many."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import xxhash

from megatron_synE.corpus.ngrams import words


class SeenTexts:
    """Remembers texts by a 64-bit hash of their words, 8 bytes for each: 10^8 texts take 0.8 GB.

    Two texts are the same where case, punctuation and spaces are all that differs. Of n texts, n²/2^65 are taken for
    others by chance: 3 in 10,000 runs of 10^8.
    """

    def __init__(self) -> None:
        self._levels: list[npt.NDArray[np.uint64]] = []

    def add(self, texts: Sequence[str]) -> list[bool]:
        """Whether each text is new, and not the repetition of one added before or of one before it in the list."""
        hashes = np.array([_hash(text) for text in texts], np.uint64)
        is_new = np.zeros(len(hashes), bool)
        _, first = np.unique(hashes, return_index=True)
        is_new[first] = True
        for level in self._levels:
            places = np.minimum(np.searchsorted(level, hashes), len(level) - 1)
            is_new &= level[places] != hashes
        self._insert(np.sort(hashes[is_new]))
        return is_new.tolist()

    def _insert(self, hashes: npt.NDArray[np.uint64]) -> None:
        """Sorted runs of which each is at least twice as long as the next, so there are few of them."""
        while self._levels and len(self._levels[-1]) < 2 * len(hashes):
            hashes = np.sort(np.concatenate([self._levels.pop(), hashes]), kind="stable")
        if len(hashes):
            self._levels.append(hashes)


def _hash(text: str) -> int:
    return xxhash.xxh3_64_intdigest(" ".join(words(text)).encode("utf-8", "replace"))
