"""The order in which a component's documents are read: an order is one sort key per document, smallest first.

Ties keep the stored order. A key depends only on the document's number, its perplexity, the seed and the epoch.
"""

from __future__ import annotations

import hashlib

import numpy as np

from megatron_synE.config.data import Order
from megatron_synE.data import native
from megatron_synE.data.fallback import mix

FIRST, LAST = np.uint64(0), np.uint64(2**64 - 1)


def sort_keys(
    order: Order, documents: np.ndarray, perplexity: np.ndarray | None, unscored: str, seed: int, salt: str, epoch: int
) -> np.ndarray:
    """uint64[N] keys of documents int32[N].

    Args:
        perplexity: float32[D] of the whole corpus, for the orders that need it; negative or NaN is "no score".
        unscored: `first` or `last`: where documents without a score go.
        salt: name of the component, so that two components of one corpus are shuffled differently.
    """
    if order == "stored":
        return np.zeros(len(documents), np.uint64)
    if order == "shuffled":
        return mix(mix(documents.astype(np.uint64)) ^ np.uint64(shuffle_seed(seed, salt, epoch)))
    assert perplexity is not None, f"order {order} without perplexities"
    scores = np.ascontiguousarray(perplexity[documents], np.float32)
    # The bits of floats that are not negative ascend as the floats do. One is added to leave 0 to `first`.
    keys = scores.view(np.uint32).astype(np.uint64) + np.uint64(1)
    if order == "perplexity_descending":
        keys = np.uint64(2**33) - keys
    keys[~has_score(scores)] = FIRST if unscored == "first" else LAST
    return keys


def arrange(documents: np.ndarray, keys: np.ndarray) -> np.ndarray:
    """The documents int32[N] by ascending key."""
    if not keys.any():
        return documents
    return documents[native.sort_documents(keys)]


def has_score(perplexity: np.ndarray) -> np.ndarray:
    """bool[N]: which values are perplexities. A document that was never scored is NaN or negative."""
    return perplexity >= 0


def shuffle_seed(seed: int, salt: str, epoch: int) -> int:
    """A 64-bit seed of one epoch of one component."""
    text = f"{seed} {epoch} {salt}".encode()
    return int.from_bytes(hashlib.sha256(text).digest()[:8], "little")
