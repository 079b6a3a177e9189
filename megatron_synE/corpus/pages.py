"""Which labelled documents are of one page, and a split that keeps them on one side: a test knows no training document.

Documents are of one page where they name the same one (a url without its #fragment, an id), or where their texts are
near-duplicates: pages are crawled twice, mirrored and quoted. Near-duplicates are found by MinHash (Broder, 1997) over
n-grams of characters, with banding (Leskovec, Rajaraman, Ullman, *Mining of Massive Datasets*, §3.4).
"""

import re
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from megatron_synE.progress import ProgressBar

NGRAM_CHARS = 5
NUM_BANDS, BAND_ROWS = 16, 4
"""Two texts of Jaccard similarity s share a band with probability 1 - (1 - s^4)^16: 0.99 at 0.7, 0.12 at 0.3."""
SIMILAR = 0.6
"""Share of equal MinHash values, an estimate of the Jaccard similarity, from which on texts are near-duplicates."""
SEED = 0x5EED


def page_groups(texts: Sequence[str], pages: Sequence[str] | None, *, max_chars: int) -> npt.NDArray[np.int64]:
    """[texts] number of each document's group: documents of one page, or of near-duplicates, have the same.

    Args:
        pages: the page that each document names, if any does.
        max_chars: only so much of a text's beginning is compared.
    """
    from scipy.sparse import coo_matrix
    from scipy.sparse.csgraph import connected_components

    links = [_near_duplicates(_signatures(texts, max_chars))]
    if pages is not None:
        names = [page.partition("#")[0] if "://" in page else page for page in pages]
        _, first, number = np.unique(names, return_index=True, return_inverse=True)
        links.append(np.stack([first[number], np.arange(len(pages))], axis=1))
    pairs = np.concatenate(links)
    graph = coo_matrix((np.ones(len(pairs), np.int8), (pairs[:, 0], pairs[:, 1])), shape=(len(texts), len(texts)))
    return connected_components(graph, directed=False)[1].astype(np.int64)


def split_by_page(
    labels: npt.NDArray[np.int64], groups: npt.NDArray[np.int64], fraction: float, seed: int
) -> tuple[npt.NDArray[Any], npt.NDArray[Any]]:
    """Training and held-out document numbers, ascending; a group is on one side.

    Of each topic the same fraction, rounded up, is held out, as far as whole groups make it; at least one group, where
    a topic has more than one. A group counts to the topic that most of its documents have.

    Raises:
        ValueError: the fraction is not between 0 and 1.
    """
    if not 0 < fraction < 1:
        raise ValueError(f"--heldout-fraction {fraction}: must be between 0 and 1")
    rng = np.random.default_rng(seed)
    votes = np.zeros((int(groups.max()) + 1, int(labels.max()) + 1), np.int64)
    np.add.at(votes, (groups, labels), 1)
    topic_of_group, size_of_group = votes.argmax(axis=1), votes.sum(axis=1)
    heldout_groups: list[int] = []
    for topic in np.unique(topic_of_group):
        own = rng.permutation(np.flatnonzero(topic_of_group == topic))
        if len(own) == 1:
            continue
        wanted, taken = int(np.ceil(fraction * size_of_group[own].sum())), 0
        for group in own:
            if taken + size_of_group[group] <= wanted:
                taken += size_of_group[group]
                heldout_groups.append(int(group))
        if not taken:
            heldout_groups.append(int(own[size_of_group[own].argmin()]))
    is_heldout = np.isin(groups, heldout_groups)
    return np.flatnonzero(~is_heldout), np.flatnonzero(is_heldout)


def _signatures(texts: Sequence[str], max_chars: int) -> npt.NDArray[np.uint32]:
    """[texts, bands · rows] MinHash values; a text without n-grams has values that no other text has."""
    rng = np.random.default_rng(SEED)
    factors = rng.integers(0, 2**63, NUM_BANDS * BAND_ROWS, dtype=np.uint64) * np.uint64(2) + np.uint64(1)
    found = np.empty((len(texts), NUM_BANDS * BAND_ROWS), np.uint32)
    with ProgressBar("comparing documents", len(texts), "documents") as bar:
        for row, text in enumerate(texts):
            ngrams = _ngrams(text[:max_chars])
            if len(ngrams):
                # multiply-shift: an odd factor permutes the 64-bit values, and their upper half is well mixed
                found[row] = ((ngrams[None, :] * factors[:, None]) >> np.uint64(32)).min(axis=1)
            else:
                found[row] = rng.integers(0, 2**32, NUM_BANDS * BAND_ROWS, dtype=np.uint32)
            bar.advance(1)
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


def _near_duplicates(signatures: npt.NDArray[np.uint32]) -> npt.NDArray[np.int64]:
    """[pairs, 2] documents that are near-duplicates: each with the first that shares one of its bands."""
    found = [np.empty((0, 2), np.int64)]
    for band in np.split(signatures, NUM_BANDS, axis=1):
        _, first, number = np.unique(band, axis=0, return_index=True, return_inverse=True)
        pairs = np.stack([first[number.ravel()], np.arange(len(band))], axis=1)
        found.append(pairs[pairs[:, 0] != pairs[:, 1]])
    pairs = np.unique(np.concatenate(found), axis=0)
    similarity = (signatures[pairs[:, 0]] == signatures[pairs[:, 1]]).mean(axis=1)
    return pairs[similarity >= SIMILAR]
