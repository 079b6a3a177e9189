"""Topics as they are read: documents without a label put where the config says, rare topics merged into one."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from megatron_synE.config.data import DataConfig, Share, SourceConfig, exact
from megatron_synE.corpus.annotations import NO_LABEL


@dataclass(frozen=True)
class Topics:
    """The topics of a source."""

    names: tuple[str, ...]
    """Those of the annotation, and `others` where it is none of them; one that was merged keeps its place, empty."""
    numbers: np.ndarray
    """int16[D] place of each document's topic in `names`, or NO_LABEL."""
    merged: Mapping[str, int]
    """Topics that were merged into `others` → the documents that they have."""


def read_topics(labels: np.ndarray, names: Sequence[str], is_readable: np.ndarray, config: SourceConfig) -> Topics:
    """The topics of a source: `unlabelled_topic`, then `min_documents` and `others`.

    Args:
        labels: int16[D] places in `names`, or NO_LABEL.
        is_readable: bool[D] whether a document is trained on or held out; others do not count.

    Raises: ValueError for an `unlabelled_topic` that is no topic.
    """
    all_names = [*names]
    if config.min_documents and config.others not in all_names:
        all_names.append(config.others)
    numbers = labels
    if config.unlabelled_topic is not None:
        if config.unlabelled_topic not in all_names:
            unknown, known = config.unlabelled_topic, ", ".join(all_names)
            raise ValueError(f"unlabelled_topic: {config.prefix} has no topic {unknown!r}; topics are {known}")
        fallback = np.int16(all_names.index(config.unlabelled_topic))
        numbers = np.where(numbers == NO_LABEL, fallback, numbers)
    if not config.min_documents:
        return Topics(tuple(all_names), numbers, {})
    counts = np.bincount(numbers[is_readable & (numbers != NO_LABEL)], minlength=len(all_names))
    others = all_names.index(config.others)
    rare = [n for n, count in enumerate(counts.tolist()) if 0 < count < config.min_documents and n != others]
    numbers = np.where(np.isin(numbers, rare), np.int16(others), numbers)
    return Topics(tuple(all_names), numbers, {all_names[number]: int(counts[number]) for number in rare})


def with_merged_shares(config: DataConfig, merged: Mapping[str, Collection[str]]) -> DataConfig:
    """The config in which a share that is given to a merged topic has gone to `others`, with the documents.

    Args: merged: source → its merged topics.
    """

    def moved(source: str, shares: dict[str, Share]) -> dict[str, Share]:
        given = [topic for topic in shares if topic in merged.get(source, ())]
        if not given:
            return shares
        kept = {topic: share for topic, share in shares.items() if topic not in given}
        others = config.sources[source].others
        kept[others] = str(exact(shares.get(others, 0)) + sum(exact(shares[topic]) for topic in given))
        return kept

    def all_moved(by_source: dict[str, dict[str, Share]]) -> dict[str, dict[str, Share]]:
        return {name: moved(name, shares) for name, shares in by_source.items()}

    return replace(
        config,
        sources={
            name: replace(source, topic_shares=moved(name, source.topic_shares))
            if isinstance(source.topic_shares, dict)
            else source
            for name, source in config.sources.items()
        },
        stages=[replace(stage, topic_shares=all_moved(stage.topic_shares)) for stage in config.stages],
        adjustment=replace(
            config.adjustment,
            schedule=[replace(p, topic_shares=all_moved(p.topic_shares)) for p in config.adjustment.schedule],
        ),
    )
