"""Which labelled documents are of one page, and a split that keeps them on one side: a test knows no training document.

Documents are of one page where they name the same one (a url without its #fragment, an id), or where their texts are
near-duplicates: pages are crawled twice, mirrored and quoted.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from megatron_synE.corpus.minhash import near_duplicates, signatures
from megatron_synE.progress import ProgressBar


def page_groups(texts: Sequence[str], pages: Sequence[str] | None, *, max_chars: int) -> npt.NDArray[np.int64]:
    """[texts] number of each document's group: documents of one page, or of near-duplicates, have the same.

    Args:
        pages: the page that each document names, if any does.
        max_chars: only so much of a text's beginning is compared.
    """
    from scipy.sparse import coo_matrix
    from scipy.sparse.csgraph import connected_components

    beginnings = (text[:max_chars] for text in texts)
    with ProgressBar("comparing documents", len(texts), "documents") as bar:
        links = [near_duplicates(signatures(beginnings, len(texts), on_text=lambda: bar.advance(1)))]
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
