"""The stream: global sample number → tokens, the same for every parallel layout, described by a small state.

Legend: B samples, S tokens in a sample, K sample numbers, C components.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np

from megatron_synE.config.data import DataConfig, Order, SourceConfig, exact
from megatron_synE.data.batches import Batch, assemble, check_tokens
from megatron_synE.data.cache import IndexCache
from megatron_synE.data.components import Chain, Component, Source, exclude_foreign_heldout
from megatron_synE.data.heldout import HeldoutSet
from megatron_synE.data.plan import Planner, Slot, make_stages, round_shares, with_moved
from megatron_synE.data.segments import MovedWeights, Segment, Timeline, with_weight
from megatron_synE.data.state import Decision, StreamState
from megatron_synE.data.strategies import RestoreShare, TopicShares, make_strategy
from megatron_synE.data.topics import with_merged_shares

DEFAULT_CACHE_FOLDER = ".index_cache"


class DataStream:
    """Everything that is read in a run. Build it with `DataStream.build`.

    One thread may read batches while another asks for anything else, or adjusts: samples before the adjustment are the
    same before and after it; those from it on have to be read again.
    """

    def __init__(
        self,
        config: DataConfig,
        components: Sequence[Component],
        planner: Planner,
        timeline: Timeline,
        decisions: Sequence[Decision],
        vocab_size: int | None = None,
    ) -> None:
        self.config, self.components, self.planner = config, list(components), planner
        self.component_names = [component.name for component in components]
        self.seq_length, self.vocab_size = config.seq_length, vocab_size
        self.strategy = make_strategy(config.adjustment)
        self.decisions = list(decisions)
        limits = [slot.capacity for slot in planner.slots]
        self._capacities = np.array([np.iinfo(np.int64).max if limit is None else limit for limit in limits])
        self._capped = any(limit is not None for limit in limits)
        self._follow(timeline)

    @classmethod
    def build(
        cls,
        config: DataConfig,
        *,
        state: Mapping[str, Any] | None = None,
        cache_builder: bool = True,
        at_sample: int | None = None,
        vocab_size: int | None = None,
        keep_indices: bool = True,
    ) -> DataStream:
        """Open the corpora, build missing indices and plan the run.

        Args:
            state: `state_dict` of a checkpoint, as parsed from JSON. What it says of samples before `at_sample` holds;
                where the config plans the rest differently, the new plan begins there.
            cache_builder: whether this process builds missing index caches at once; the others wait for it first.
            at_sample: samples consumed so far; needed only where the plan differs and the state does not say it.
            vocab_size: size of the model's vocabulary, without padding; a batch with another token is refused. None:
                not checked.
            keep_indices: whether indices that had to be built are written to the cache.
        Raises: ValueError naming file and field for unusable corpora, annotations or states.
        """
        components = open_components(config, cache_builder, keep_indices)
        merged = {c.source.name: c.source.merged_topics for c in components if c.topic is not None}
        config = with_merged_shares(config, merged)
        slots = [
            Slot(c.source.name, c.topic, c.source.config.language, c.capacity()) for c in components
        ]
        planner = Planner(config, slots, initial_topic_shares(config, components))
        if state is None:
            return cls(config, components, planner, planner.timeline(), [], vocab_size)
        recorded = StreamState.from_json(state)
        recorded.check_against(config.seq_length, config.seed, components)
        timeline = Timeline(recorded.segments_for(components), recorded.num_samples, planner.tables)
        stream = cls(config, components, planner, timeline, recorded.decisions, vocab_size)
        at_sample = recorded.sample if at_sample is None else at_sample
        if at_sample is not None and not 0 <= at_sample <= recorded.num_samples:
            raise ValueError(f"stream state: of {recorded.num_samples} samples, {at_sample} cannot have been consumed")
        if recorded.plan != planner.describe():
            if at_sample is None:
                raise ValueError("data.stages: the plan is not the checkpoint's; tell the samples consumed so far")
            stream._replan(at_sample, {**planner.initial_topic_shares, **timeline.at(at_sample).topic_shares}, "config")
        return stream

    @property
    def merged_topics(self) -> dict[str, Mapping[str, int]]:
        """Source with topics → its topics that are read as part of `others` → their documents."""
        return {c.source.name: c.source.merged_topics for c in self.components if c.topic is not None}

    def describe_merges(self) -> list[str]:
        """A line for each source with merged topics."""
        return [
            f"data.sources.{source}: read as {self.config.sources[source].others!r}: "
            + ", ".join(f"{topic} ({count:,} documents)" for topic, count in merged.items())
            for source, merged in self.merged_topics.items()
            if merged
        ]

    def describe_moves(self) -> list[str]:
        """A line for each decision on the sources themselves."""

        def moved(decision: Decision) -> str:
            after, before = decision.shares_after, decision.shares_before
            return ", ".join(f"{name} {before[name]:.4f} → {after[name]:.4f}" for name in after)

        return [
            f"shares of the sources moved at sample {decision.at_sample:,}: {moved(decision)}"
            for decision in self.decisions
            if decision.moves == "sources"
        ]

    @property
    def num_samples(self) -> int:
        """Samples of all stages."""
        return self.timeline.num_samples

    def locate(self, sample_numbers: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Component int32[K] and sample in it int64[K] of global samples int64[K], in any order.

        Raises: IndexError outside the stream; ValueError where a component would exceed its max_epochs.
        """
        component, index = self.timeline.locate(sample_numbers)
        if self._capped and (spent := index >= self._capacities[component]).any():
            raise ValueError(self._exhausted_message(component[spent][0], sample_numbers[int(np.argmax(spent))]))
        return component, index

    def batch(self, sample_numbers: Sequence[int] | np.ndarray) -> Batch:
        """The samples with these global numbers.

        Raises: as `locate`; ValueError for a token that the model's vocabulary does not have, and for a corpus that
            changed since it was opened.
        """
        component_B, index_B = self.locate(np.asarray(sample_numbers, np.int64))
        rows = np.empty((len(component_B), self.seq_length + 1), np.int64)
        starts = [
            self.components[component].read(index, rows[row])
            for row, (component, index) in enumerate(zip(component_B.tolist(), index_B.tolist(), strict=True))
        ]
        for corpus in {self.components[component].source.corpus for component in set(component_B.tolist())}:
            corpus.check_unchanged()
        if self.vocab_size is not None:
            check_tokens(
                rows, self.vocab_size, lambda row, place: self._place_of(component_B[row], index_B[row], place)
            )
        return assemble(
            rows,
            starts,
            component_B,
            isolate_documents=self.config.isolate_documents,
            eod_mask_loss=self.config.eod_mask_loss,
        )

    def shares(self, sample: int) -> dict[str, float]:
        """Component → share in the segment in force at a sample."""
        numerators = self.timeline.at(sample).numerators
        return {name: count / sum(numerators) for name, count in zip(self.component_names, numerators, strict=True)}

    def source_weights(self, sample: int) -> dict[str, Fraction]:
        """Source → weight in force at a sample, exact; what stands in for an exhausted source is not in it."""
        return dict(with_moved(self.planner.stage_at(sample), self.timeline.at(sample).moved).weights)

    def heldout(self) -> dict[str, HeldoutSet]:
        """Component → its held-out samples; a set may be empty."""
        return {
            component.name: HeldoutSet(
                component.heldout(),
                number,
                self.seq_length,
                self.config.heldout_samples,
                self.config.isolate_documents,
                self.config.eod_mask_loss,
                self.vocab_size,
            )
            for number, component in enumerate(self.components)
        }

    def next_adjustment_sample(self, sample: int) -> int | None:
        """The first sample, not before `sample`, at which held-out perplexity is due; None when none is left.

        The first measurement is due where live adjustment begins, the next ones at multiples of the interval. A caller
        that only looks between steps measures when the answer equals the next step's first sample.
        """
        interval_tokens = self.strategy.interval_tokens
        if interval_tokens is None:
            return None
        interval = max(1, interval_tokens // self.seq_length)
        last = self._last_measurement()
        due = (last.at_sample // interval + 1) * interval if last is not None else 0
        due = max(due, sample)
        for stage in self.planner.stages:
            if stage.adjust and due < stage.end:
                return max(due, stage.start)
        return None

    def adjust(self, at_sample: int, perplexity: Mapping[str, float]) -> Decision | None:
        """Decide on a measurement made before sample `at_sample` is read; that sample is the first of a new segment.

        Args: perplexity: component name → held-out perplexity, of every component of a source with topics.
        Returns: the decision when shares change, else None. The measurement is recorded either way.
        Raises: ValueError for a missing or non-finite perplexity, or when at_sample lies before the last decision.
        """
        segment, last = self.timeline.at(at_sample), self._last_measurement()
        if self.decisions and at_sample < self.decisions[-1].at_sample:
            raise ValueError(f"adjustment at sample {at_sample} lies before the one at {self.decisions[-1].at_sample}")
        # A stage may set the share of a topic without documents, which is 0.
        shares = {
            source: {topic: share for topic, share in topics.items() if f"{source}/{topic}" in self.component_names}
            for source, topics in segment.topic_shares.items()
        }
        measured = by_topic(perplexity, shares)
        # A source that joined since the last measurement has nothing to be compared with yet.
        recorded = last.perplexity if last is not None else {}
        compared = {s: topics for s, topics in shares.items() if all(f"{s}/{topic}" in recorded for topic in topics)}
        proposals = self.strategy.decide(compared, by_topic(recorded, compared), measured) if compared else {}
        new = {
            source: round_shares(proposal.shares, self.planner.stage_at(at_sample))
            for source, proposal in proposals.items()
        }
        after: TopicShares = {**shares, **new}
        inputs: dict[str, dict[str, float]] = {}
        for source, proposal in proposals.items():
            for name, values in proposal.inputs.items():
                inputs.setdefault(name, {}).update({f"{source}/{topic}": value for topic, value in values.items()})
        decision = Decision(
            at_sample=at_sample,
            at_tokens=at_sample * self.seq_length,
            perplexity={name: float(value) for name, value in perplexity.items()},
            shares_before=flat(shares),
            shares_after=flat(after),
            inputs=inputs,
            changed=after != shares,
        )
        self.decisions.append(decision)
        if not decision.changed:
            return None
        self._replan(at_sample, after, "adjustment")
        return decision

    def restore_share(
        self, at_sample: int, sources: Sequence[str], strategy: RestoreShare, *, spared: Sequence[str] = (),
        inputs: Mapping[str, Mapping[str, float]] | None = None,
    ) -> Decision:  # fmt: skip
        """Move share of the mixture back to sources; sample `at_sample` is the first of a new segment.

        The topics keep their shares in their source. A later stage with other weights begins with its own.

        Args: spared: other sources that do not give. inputs: what led to it, for the record.
        Raises: ValueError when nothing can be moved, with the reason; everything is as before then.
        """
        if at_sample >= self.num_samples:
            raise ValueError("the run is at its end")
        assert not self.decisions or at_sample >= self.decisions[-1].at_sample, "decisions ascend"
        planned = self.planner.stage_at(at_sample).weights
        before = self.source_weights(at_sample)
        proposal = strategy.decide(before, planned, self._unspent(at_sample, sources), {*sources, *spared})
        moved = MovedWeights(with_weight(planned), with_weight(proposal.shares))
        topic_shares = self.timeline.at(at_sample).topic_shares
        timeline = self.planner.replan(self.timeline, at_sample, topic_shares, "restoration", moved)
        if self.config.exhausted == "error":
            self._check_caps(timeline)
        decision = Decision(
            at_sample=at_sample,
            at_tokens=at_sample * self.seq_length,
            shares_before={name: float(weight) for name, weight in before.items()},
            shares_after={name: float(weight) for name, weight in proposal.shares.items()},
            inputs={name: dict(values) for name, values in {**(inputs or {}), **proposal.inputs}.items()},
            changed=True,
            moves="sources",
        )
        self.decisions.append(decision)
        self._follow(timeline)
        return decision

    def state_dict(self, sample: int | None = None) -> dict[str, Any]:
        """The state as JSON; `sample` is the number of samples consumed so far."""
        return StreamState(
            seq_length=self.seq_length,
            seed=self.config.seed,
            num_samples=self.num_samples,
            components=self._recorded_components(self.num_samples if sample is None else sample),
            plan=self.planner.describe(),
            segments=self.timeline.segments,
            decisions=self.decisions,
            sample=sample,
        ).to_json()

    def _last_measurement(self) -> Decision | None:
        """The newest measurement that topics were decided on."""
        return next((decision for decision in reversed(self.decisions) if decision.moves == "topics"), None)

    def _unspent(self, sample: int, sources: Sequence[str]) -> list[str]:
        """Those of the sources that can still be read at a sample. ValueError where there is none."""
        left = self._capacities - self.timeline.cursors(sample)
        found = {c.source.name for c, samples in zip(self.components, left, strict=True) if samples > 0}
        if not found & set(sources):
            raise ValueError(f"{', '.join(sources)} cannot be read any further: max_epochs is reached")
        return [name for name in sources if name in found]

    def _check_caps(self, timeline: Timeline) -> None:
        """ValueError where a component passes its max_epochs that did not before: the run would end there."""
        before, after = self.timeline.cursors(self.num_samples), timeline.cursors(self.num_samples)
        for number in np.flatnonzero((after > self._capacities) & (before <= self._capacities)):
            name = self.component_names[int(number)]
            raise ValueError(f"{name} would pass its max_epochs; raise it, or set data.exhausted to reweight")

    def _place_of(self, component: int, sample: int, place: int) -> tuple[str, int]:
        """Corpus and document of a token."""
        found = self.components[component]
        return found.source.config.prefix, found.document_at(int(sample), place)

    def _recorded_components(self, sample: int) -> list[dict[str, Any]]:
        """What determined the order of all that is read before `sample`; perplexities only where they had a part."""
        recorded = []
        for component, cursor in zip(self.components, self.timeline.cursors(sample), strict=True):
            entry = {"name": component.name, "identity": component.identity, "num_tokens": component.num_tokens}
            if component.read_by_perplexity(int(cursor)):
                entry["order"] = component.source.perplexity_order_digest
            recorded.append(entry)
        return recorded

    def _replan(self, sample: int, topic_shares: TopicShares, reason: str) -> None:
        self._follow(self.planner.replan(self.timeline, sample, topic_shares, reason))

    def _follow(self, timeline: Timeline) -> None:
        self.timeline = timeline
        for number, component in enumerate(self.components):
            component.chain = order_chain(timeline.segments, number, component)

    def _exhausted_message(self, component: int, sample: int) -> str:
        name = self.component_names[component]
        source = self.components[component].source
        return (
            f"component {name} has used up its {source.config.max_epochs} epochs at sample {sample}; raise "
            f"data.sources.{source.name}.max_epochs, lower its weight, or set data.exhausted to reweight"
        )


def open_components(config: DataConfig, cache_builder: bool = True, keep_indices: bool = True) -> list[Component]:
    """The components of a config: a source in one piece, or each of its topics that has documents.

    In the order of the sources' names: equal claims on a sample go to the first, so the order in a file must not count.
    """
    first_orders: dict[str, Order] = {name: source.order for name, source in config.sources.items()}
    if config.stages:
        first_orders |= config.stages[0].orders
    components = []
    for source in open_sources(config, cache_builder, keep_indices):
        for topic in source.topic_names if source.config.topics else [None]:
            component = Component(source, topic, first_orders[source.name], config.seq_length, config.seed)
            if component.num_tokens:
                components.append(component)
            elif topic is None:
                raise ValueError(f"data.sources.{source.name}: {source.config.prefix} has no document to train on")
    return components


def open_sources(config: DataConfig, cache_builder: bool = True, keep_indices: bool = True) -> list[Source]:
    """The sources in the order of their names."""
    caches: dict[Path, IndexCache] = {}
    sources = []
    for name, source_config in sorted(config.sources.items()):
        folder = cache_folder(config, source_config)
        cache = caches.setdefault(folder, IndexCache(folder, cache_builder, keep=keep_indices))
        sources.append(Source(name, source_config, config.heldout_fraction_of(name), cache))
    exclude_foreign_heldout(sources)
    return sources


def cache_folder(config: DataConfig, source: SourceConfig) -> Path:
    """Where the indices of a source are cached."""
    if config.cache_dir is not None:
        return Path(config.cache_dir)
    return Path(source.prefix).parent / DEFAULT_CACHE_FOLDER


def initial_topic_shares(config: DataConfig, components: Sequence[Component]) -> TopicShares:
    """Topic shares before any stage sets others: by tokens, equal, or as the config gives them."""
    by_source: dict[str, dict[str, Component]] = {}
    for component in components:
        if component.topic is not None:
            by_source.setdefault(component.source.name, {})[component.topic] = component
    shares: dict[str, dict[str, Fraction]] = {}
    for source, topics in by_source.items():
        wanted = config.sources[source].topic_shares
        if wanted == "uniform":
            shares[source] = {topic: Fraction(1, len(topics)) for topic in topics}
        elif wanted == "natural":
            tokens = sum(component.num_tokens for component in topics.values())
            natural = {topic: Fraction(component.num_tokens, tokens) for topic, component in topics.items()}
            shares[source] = round_shares(natural, make_stages(config)[0])
        else:
            shares[source] = {topic: exact(wanted.get(topic, 0)) for topic in topics}
    return shares


def order_chain(segments: Sequence[Segment], number: int, component: Component) -> Chain:
    """The orders of a component over the segments, each with the token of the component from which on it holds."""
    chain: list[tuple[Order, int]] = []
    for segment in segments:
        order, token = segment.orders[component.source.name], segment.cursors[number] * component.seq_length
        if chain and chain[-1][1] == token:
            chain.pop()
        if not chain or chain[-1][0] != order:
            chain.append((order, token))
    return tuple(chain)


def by_topic(perplexity: Mapping[str, float], shares: TopicShares) -> dict[str, dict[str, float]]:
    """Source → topic → perplexity, of the sources and topics in `shares`; ValueError where one is no finite number."""
    found: dict[str, dict[str, float]] = {}
    for source, topics in shares.items():
        for topic in topics:
            value = perplexity.get(f"{source}/{topic}")
            if value is None or not 0 <= value < math.inf:
                raise ValueError(f"held-out perplexity of {source}/{topic} is {value}; a finite number is needed")
            found.setdefault(source, {})[topic] = float(value)
    return found


def flat(shares: TopicShares) -> dict[str, float]:
    """Component → share."""
    return {f"{source}/{topic}": float(share) for source, topics in shares.items() for topic, share in topics.items()}
