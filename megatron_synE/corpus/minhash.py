"""Near-duplicates among many texts, each of which takes 256 bytes.

They are found by MinHash (Broder, 1997) over n-grams of characters, with banding (Leskovec, Rajaraman, Ullman, *Mining
of Massive Datasets*, §3.4).
"""

import re
from collections.abc import Callable, Iterable

import numpy as np
import numpy.typing as npt

NGRAM_CHARS = 5
NUM_BANDS, BAND_ROWS = 16, 4
"""Two texts of Jaccard similarity s share a band with probability 1 - (1 - s^4)^16: 0.99 at 0.7, 0.12 at 0.3."""
SIMILAR = 0.6
"""Share of equal MinHash values, an estimate of the Jaccard similarity, from which on texts are near-duplicates."""
SEED = 0x5EED


def signatures(
    texts: Iterable[str], num_texts: int, *, on_text: Callable[[], None] = lambda: None
) -> npt.NDArray[np.uint32]:
    """[texts, bands · rows] MinHash values; a text without n-grams has values that no other text has.

    Args:
        num_texts: how many there are.
        on_text: called after each.
    """
    rng = np.random.default_rng(SEED)
    factors = rng.integers(0, 2**63, NUM_BANDS * BAND_ROWS, dtype=np.uint64) * np.uint64(2) + np.uint64(1)
    found = np.empty((num_texts, NUM_BANDS * BAND_ROWS), np.uint32)
    for row, text in enumerate(texts):
        ngrams = _ngrams(text)
        if len(ngrams):
            # multiply-shift: an odd factor permutes the 64-bit values, and their upper half is well mixed
            found[row] = ((ngrams[None, :] * factors[:, None]) >> np.uint64(32)).min(axis=1)
        else:
            found[row] = rng.integers(0, 2**32, NUM_BANDS * BAND_ROWS, dtype=np.uint32)
        on_text()
    return found


def _ngrams(text: str) -> npt.NDArray[np.uint64]:
    """Hashes of the different n-grams of a text's characters, without case and with one space between words."""
    plain = re.sub(r"\s+", " ", text).strip().lower()
    chars = np.frombuffer(plain.encode("utf-32-le", errors="replace"), np.uint32).astype(np.uint64)
    size = min(NGRAM_CHARS, len(chars))  # a shorter text is one n-gram
    mixed = np.zeros(max(len(chars) - size + 1, 0) if size else 0, np.uint64)
    for place in range(size):
        mixed = (mixed ^ chars[place : place + len(mixed)]) * np.uint64(0x9E3779B97F4A7C15)
        mixed ^= mixed >> np.uint64(29)
    return np.unique(mixed)


def near_duplicates(values: npt.NDArray[np.uint32], similar: float = SIMILAR) -> npt.NDArray[np.int64]:
    """[pairs, 2] documents that are near-duplicates: each with the first that shares one of its bands.

    Args:
        values: from `signatures`.
        similar: share of equal values from which on two are near-duplicates.
    """
    found = [np.empty((0, 2), np.int64)]
    for band in np.split(values, NUM_BANDS, axis=1):
        _, first, number = np.unique(band, axis=0, return_index=True, return_inverse=True)
        pairs = np.stack([first[number.ravel()], np.arange(len(band))], axis=1)
        found.append(pairs[pairs[:, 0] != pairs[:, 1]])
    pairs = np.unique(np.concatenate(found), axis=0)
    similarity = (values[pairs[:, 0]] == values[pairs[:, 1]]).mean(axis=1)
    return pairs[similarity >= similar]
