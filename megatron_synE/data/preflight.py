"""What can only be found wrong by opening the files: all of it, in one list, before anything is trained."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from decimal import ROUND_CEILING, Context
from typing import Any

import numpy as np

from megatron_synE.config.data import DataConfig, Share, SourceConfig, exact
from megatron_synE.corpus.annotations import NO_LABEL
from megatron_synE.data.cache import IndexCache
from megatron_synE.data.components import Component, Source, exclude_foreign_heldout, threshold_of
from megatron_synE.data.curriculum import has_score
from megatron_synE.data.heldout import smallest_heldout_fraction
from megatron_synE.data.strategies.topic_perplexity import bounded
from megatron_synE.data.stream import DataStream, cache_folder
from megatron_synE.data.topics import with_merged_shares

SHOWN = 5
MAX_UNUSED_ROWS = 1024
"""Models may have rows that their tokenizer never names; more than this many means another tokenizer."""


def preflight(
    config: DataConfig, state: Mapping[str, Any] | None = None, *, vocab_size: int | None = None
) -> list[str]:
    """The problems that `examine` finds."""
    return examine(config, state, vocab_size=vocab_size)[0]


def examine(
    config: DataConfig,
    state: Mapping[str, Any] | None = None,
    *,
    vocab_size: int | None = None,
    keep_indices: bool = True,
) -> tuple[list[str], DataStream | None]:
    """Problems of the corpora and annotations, as `file or field: what is wrong; fix`. Call it after `problems()`.

    Builds missing indices, so that the run does not have to. Opens every file, even where an earlier one is bad.

    Args:
        state: the stream's state of the checkpoint that the run continues.
        vocab_size: of the model, to compare the corpora's tokenizers with; None where it is not known.
        keep_indices: whether indices that had to be built are written to the cache.
    Returns: the problems, and the stream, where it could be planned.
    """
    found: list[str] = []
    sources = []
    for name, source_config in sorted(config.sources.items()):
        try:
            cache = IndexCache(cache_folder(config, source_config), keep=keep_indices)
            source = Source(name, source_config, config.heldout_fraction_of(name), cache)
            source.corpus.metadata  # noqa: B018 - reads the sidecar, and hashes the corpus where that is of another
            sources.append(source)
            found += source_problems(config, sources[-1])
        except ValueError as error:
            found.append(f"data.sources.{name}: {error}")
    unusable = bool(found)
    if vocab_size is not None:
        found += vocabulary_problems(sources, vocab_size)
    if unusable:
        return found, None
    try:
        if problems := component_problems(config, sources):
            return found + problems, None
        stream = DataStream.build(config, state=state, vocab_size=vocab_size, keep_indices=keep_indices)
        return found + plan_problems(stream, (state or {}).get("sample") or 0), stream
    except ValueError as error:
        return [*found, str(error)], None


def vocabulary_problems(sources: Sequence[Source], vocab_size: int) -> list[str]:
    """Corpora that were tokenised with another vocabulary than the model's, as far as their sidecars tell."""
    found = []
    for source in sources:
        tokenizer = source.corpus.tokenizer or {}
        size = tokenizer.get("vocab_size")
        if size is not None and not size <= vocab_size < size + MAX_UNUSED_ROWS:
            found.append(
                f"data.sources.{source.name}.prefix: {source.config.prefix} was tokenised with a vocabulary of {size} "
                f"({tokenizer.get('name')}), the model has {vocab_size}; tokenise it with the model's tokenizer, "
                "or choose the model that fits"
            )
    return found


def component_problems(config: DataConfig, sources: Sequence[Source]) -> list[str]:
    """Components that are too short, and topic shares that do not fit the topics that have documents."""
    exclude_foreign_heldout(sources)
    config = with_merged_shares(config, {s.name: s.merged_topics for s in sources if s.config.topics})
    components = {source.name: source_components(config, source) for source in sources}
    found = [problem for own in components.values() for problem in length_problems(config, own)]
    found += [problem for own in components.values() for problem in measuring_problems(config, own)]
    return found + share_problems(config, components)


def plan_problems(stream: DataStream, position: int = 0) -> list[str]:
    """Bounds and caps that the plan cannot keep from sample `position` on."""
    return bound_problems(stream) + exhaustion_problems(stream, position)


def source_components(config: DataConfig, source: Source) -> list[Component]:
    """The components of a source, those without documents included."""
    topics: Sequence[str | None] = source.topic_names if source.config.topics else [None]
    return [Component(source, topic, source.config.order, config.seq_length, config.seed) for topic in topics]


def source_problems(config: DataConfig, source: Source) -> list[str]:
    """Annotations that the config needs and the corpus lacks, or whose values are unusable."""
    name, found = source.name, []
    orders = {source.config.order, *(stage.orders[name] for stage in config.stages if name in stage.orders)}
    if any(order.startswith("perplexity") for order in orders):
        found += perplexity_problems(source)
    if source.config.topics:
        found += topic_problems(source)
    return found


def perplexity_problems(source: Source) -> list[str]:
    """Infinite or missing perplexities; opening the annotation has refused NaN."""
    where, found = f"{source.config.prefix}: annotation perplexity", []
    infinite, missing = np.isinf(source.perplexity), ~has_score(source.perplexity)
    if infinite.any():
        found.append(f"{where}: infinite for {infinite.sum()} documents ({listed(infinite)}); score them again")
    if missing.any() and source.config.unscored == "error":
        found.append(
            f"{where}: {missing.sum()} documents have none ({listed(missing)}); score them, or set "
            f"data.sources.{source.name}.unscored to first, last or drop"
        )
    return found


def topic_problems(source: Source) -> list[str]:
    """Documents without a label."""
    unlabelled = source.topics == NO_LABEL
    if not unlabelled.any():
        return []
    return [
        f"{source.config.prefix}: annotation topic: {unlabelled.sum()} documents have none ({listed(unlabelled)}); "
        f"label them, or set data.sources.{source.name}.unlabelled_topic"
    ]


def length_problems(config: DataConfig, components: Sequence[Component]) -> list[str]:
    """Components that hold documents but not one sample."""
    found = []
    for component in components:
        source, tokens = component.source, component.num_tokens
        what = f"{source.config.prefix}" + (f": topic {component.topic!r}" if component.topic else "")
        if tokens <= config.seq_length and (tokens or component.topic is None):
            found.append(
                f"{what}: {tokens} tokens to train on, less than one sample of {config.seq_length} + 1; add documents"
                + (f", merge small topics (data.sources.{source.name}.min_documents)" if component.topic else "")
                + " or lower data.seq_length"
            )
    return found


def measuring_problems(config: DataConfig, components: Sequence[Component]) -> list[str]:
    """Topics that live adjustment would have to measure and cannot: no document of two tokens is held out."""
    if config.adjustment.strategy != "topic_perplexity" or components[0].topic is None:
        return []
    read = [component for component in components if component.num_tokens]
    missing = [component for component in read if np.diff(component.heldout().ends).max(initial=0) < 2]
    if not missing:
        return []
    source, shown = components[0].source, ", ".join(f"{c.topic} ({c.num_documents})" for c in missing[:SHOWN])
    merge = f"merge small topics into a larger one (data.sources.{source.name}.min_documents, others)"
    enough = measuring_fraction(missing, read)
    fix = f"set data.sources.{source.name}.heldout_fraction to {enough} (the smallest that works), or {merge}"
    return [
        f"{source.config.prefix}: topics without a held-out document to measure their perplexity on (documents that "
        f"train): {shown}{' …' if len(missing) > SHOWN else ''}; "
        + (fix if enough else f"no held-out fraction leaves a sample of each topic to train on: {merge}")
    ]


def measuring_fraction(missing: Sequence[Component], read: Sequence[Component]) -> str | None:
    """The smallest held-out fraction that lets each of the `missing` topics be measured and each of `read` be trained
    on, rounded up to as few digits as still do that (three at least); None where there is none."""
    source = read[0].source
    lengths, hashes = source.corpus.document_lengths(), source.hashes()
    needed = 0.0
    for component in missing:
        documents = source.documents(component.topic, heldout=None)
        fraction = smallest_heldout_fraction(hashes[documents[lengths[documents] >= 2]])
        if fraction is None:
            return None
        needed = max(needed, fraction)
    for digits in range(3, 18):
        written = f"{Context(prec=digits, rounding=ROUND_CEILING).create_decimal_from_float(needed):f}"
        threshold = threshold_of(float(written))
        training = [component.epoch(0).order for component in read]
        tokens = [int(lengths[order][hashes[order] >= np.uint64(threshold)].sum()) for order in training]
        if float(written) < 1 and min(tokens) > read[0].seq_length:
            return written
    return None


def share_problems(config: DataConfig, components: Mapping[str, Sequence[Component]]) -> list[str]:
    """Topic shares, of the config, its stages and its schedule, that do not fit the topics that have documents."""
    found = []
    for name, source in config.sources.items():
        if source.topics:
            found += initial_share_problems(f"data.sources.{name}.topic_shares", source, components[name])
    settings = [(f"data.stages.{stage.name}.topic_shares", stage.topic_shares) for stage in config.stages]
    for number, point in enumerate(config.adjustment.schedule):
        settings.append((f"data.adjustment.schedule[{number}].topic_shares", point.topic_shares))
    for where, by_source in settings:
        for name, shares in by_source.items():
            found += given_share_problems(f"{where}.{name}", shares, components[name])
    return found


def initial_share_problems(where: str, source: SourceConfig, components: Sequence[Component]) -> list[str]:
    """Shares given to topics without documents, and documents of topics without a share."""
    if not isinstance(source.topic_shares, dict):
        return []  # natural and uniform count the topics that have documents
    return given_share_problems(where, source.topic_shares, components)


def given_share_problems(where: str, shares: Mapping[str, Share], components: Sequence[Component]) -> list[str]:
    """Shares of topics that are unknown or have no documents, and topics with documents but no share."""
    found = unknown_topics(where, shares, components[0].source.topic_names)
    for component in components:
        topic, prefix = component.topic, component.source.config.prefix
        if topic is None or (component.num_tokens and topic in shares):
            continue
        if component.num_tokens:
            found.append(f"{where}: no share for {topic!r}, which {prefix} has; add it or 0")
        elif exact(shares.get(topic, 0)) > 0:
            found.append(f"{where}.{topic}: share {shares[topic]}, but {prefix} has no document of it; use 0")
    return found


def unknown_topics(where: str, shares: Mapping[str, Share], names: Sequence[str]) -> list[str]:
    """Topics that no annotation names."""
    return [f"{where}: unknown topic {name!r}; topics are {', '.join(names)}" for name in shares if name not in names]


def bound_problems(stream: DataStream) -> list[str]:
    """Floors and caps that the number of topics of a source makes impossible."""
    adjustment, found = stream.config.adjustment, []
    if adjustment.strategy == "topic_perplexity":
        for source, shares in stream.planner.initial_topic_shares.items():
            try:
                bounded(shares, adjustment.floor, adjustment.cap)
            except ValueError as error:
                found.append(f"{error} (source {source})")
    return found


def exhaustion_problems(stream: DataStream, position: int) -> list[str]:
    """Components that the plan, as known now, drives past their max_epochs after sample `position`."""
    found = []
    standing = stream.timeline.cursors(position)
    for stage in stream.planner.stages:
        cursors = stream.timeline.cursors(stage.end)
        for component, cursor, before in zip(stream.components, cursors, standing, strict=True):
            capacity = component.capacity()
            if capacity is not None and cursor > max(capacity, before):
                epochs = cursor * stream.seq_length / component.num_tokens
                found.append(
                    f"data.sources.{component.source.name}.max_epochs: {component.source.config.max_epochs}, but "
                    f"{component.name} is read {epochs:.2f} times by the end of stage {stage.name}; raise it, lower "
                    "its weight, or set data.exhausted to reweight"
                )
    return found


def listed(chosen: np.ndarray) -> str:
    """The first document numbers where a mask is set."""
    numbers = np.flatnonzero(chosen)
    return "document " + ", ".join(map(str, numbers[:SHOWN])) + (" …" if len(numbers) > SHOWN else "")
