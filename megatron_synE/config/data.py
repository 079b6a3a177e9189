"""What the model reads, in which order: sources, stages, curriculum, held-out part and live adjustment.

Shares are exact: the decimal (or "1/3") written in the YAML file is the number meant, never its binary neighbour.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from fractions import Fraction
from typing import Literal

Share = int | float | str
Order = Literal["stored", "shuffled", "perplexity_ascending", "perplexity_descending"]

MAX_COMPONENT_NAME = 200


def exact(share: Share) -> Fraction:
    """The rational that a user wrote: 0.14 is 7/50 exactly, "1/3" a third. ValueError when it is no finite number."""
    try:
        return Fraction(str(share).strip())
    except (ValueError, ZeroDivisionError):
        raise ValueError(f"{share!r} is not a number; write a decimal such as 0.14 or a ratio such as '1/3'") from None


@dataclass(frozen=True)
class SourceConfig:
    """One corpus on disk. With `topics` it is read as one component per topic, else as one component."""

    prefix: str
    """Path of the corpus without `.bin`/`.idx`."""
    language: str = ""
    """Language (or `synthetic`), for stages with `language_shares` and for what replaces an exhausted component."""
    order: Order = "shuffled"
    """Order of documents: as stored, shuffled by seed and epoch, or by the annotated perplexity."""
    unscored: Literal["first", "last", "drop", "error"] = "error"
    """Where documents without a perplexity go in an order by perplexity; `error` refuses them."""
    max_epochs: float | None = None
    """Most passes over the documents; None sets no cap. Past it, `data.exhausted` says what happens."""
    topics: bool = False
    """Split into one component per annotated topic."""
    topic_shares: dict[str, Share] | Literal["natural", "uniform"] = "natural"
    """Initial shares of the topics in this source: `natural`, their part of its tokens (a topic without documents is
    left out); `uniform`, the same for each topic with documents; or given for each topic (sum 1)."""
    unlabelled_topic: str | None = None
    """Topic that takes documents without a label; None refuses them."""
    min_documents: int = 0
    """A topic with fewer documents (not empty, held-out ones included) is read as part of the topic `others`; a share
    given to it goes there too. 0 merges none. What is merged is part of the order: a resume with another merge is
    refused."""
    others: str = "others"
    """Topic that takes those with fewer than `min_documents`: one of the annotation, or a new one."""
    heldout_fraction: float | None = None
    """Part of the documents held out of training; None takes `data.heldout_fraction`."""


@dataclass(frozen=True)
class StageConfig:
    """A token budget with constant weights over sources."""

    name: str
    """Name in logs and in the ledger."""
    tokens: int
    """Budget in tokens."""
    weights: dict[str, Share] | None = None
    """Share of each source in the stage's tokens (sum 1). Give this, or `language_shares`."""
    language_shares: dict[str, Share] | None = None
    """Share of each language (sum 1); `source_shares` divides each among its sources."""
    source_shares: dict[str, dict[str, Share]] = field(default_factory=dict)
    """Language → source → share of that language (each sum 1); languages not named here use `data.source_shares`."""
    orders: dict[str, Order] = field(default_factory=dict)
    """Source → order from this stage on; the documents already read keep their place, the others are re-ordered."""
    topic_shares: dict[str, dict[str, Share]] = field(default_factory=dict)
    """Source → topic → share set at the stage's start; sources not named carry on with the shares in force."""
    adjust: bool = True
    """Whether live adjustment acts in this stage."""


@dataclass(frozen=True)
class SchedulePoint:
    """Topic shares that come into force at a point of the run."""

    at_tokens: int
    """Tokens read before these shares come into force."""
    topic_shares: dict[str, dict[str, Share]] = field(default_factory=dict)
    """Source → topic → share (each sum 1)."""


@dataclass(frozen=True)
class AdjustmentConfig:
    """How topic shares move during a run. Each source's topics move among themselves: languages keep their ratio."""

    strategy: Literal["static", "schedule", "topic_perplexity"] = "static"
    """Never; at the points of `schedule`; or by the held-out perplexity of each topic, as Llama-3-SynE does
    (arXiv 2407.18743, section 3.1)."""
    interval_tokens: int = 0
    """Tokens between two measurements of topic_perplexity."""
    alpha: float = 0.2
    """Strength α in f = 1 + α·δ·w."""
    floor: float = 0.01
    """Smallest share of a topic in its source."""
    cap: float = 0.5
    """Largest share of a topic in its source."""
    topic_weights: dict[str, float] = field(default_factory=dict)
    """Topic → w in f = 1 + α·δ·w; 1 where not named."""
    schedule: list[SchedulePoint] = field(default_factory=list)
    """Points of strategy `schedule`, in order."""

    def problems(self) -> list[str]:
        """Contradictions among these fields."""
        found: list[str] = []
        where = "data.adjustment"
        if self.strategy == "topic_perplexity":
            if self.interval_tokens <= 0:
                found.append(f"{where}.interval_tokens: {self.interval_tokens}; give the tokens between measurements")
            if self.alpha < 0:
                found.append(f"{where}.alpha: {self.alpha} is negative; use 0 to 1")
            for topic, weight in {"(default)": 1.0, **self.topic_weights}.items():
                if weight < 0 or self.alpha * weight >= 1:
                    found.append(
                        f"{where}.topic_weights: alpha × w is {self.alpha * weight:g} for {topic}; "
                        "keep it in [0, 1), so that no factor 1 + α·δ·w reaches 0"
                    )
            if not 0 <= self.floor <= self.cap <= 1:
                found.append(f"{where}.floor, cap: {self.floor} and {self.cap} are not 0 ≤ floor ≤ cap ≤ 1")
        if (self.strategy == "schedule") != bool(self.schedule):
            found.append(f"{where}.schedule: {len(self.schedule)} points with {self.strategy}; give both or neither")
        points = [point.at_tokens for point in self.schedule]
        if points != sorted(set(points)) or any(point < 0 for point in points):
            found.append(f"{where}.schedule: at_tokens are {points}; write each once, ascending, not negative")
        for number, point in enumerate(self.schedule):
            for source, shares in point.topic_shares.items():
                found += share_problems(f"{where}.schedule[{number}].topic_shares.{source}", shares)
        return found


@dataclass(frozen=True)
class DataConfig:
    """The whole plan of what is read."""

    sources: dict[str, SourceConfig] = field(default_factory=dict)
    """Name → corpus. A source with topics becomes the components `name/topic`."""
    stages: list[StageConfig] = field(default_factory=list)
    """Stages in the order they are trained."""
    source_shares: dict[str, dict[str, Share]] = field(default_factory=dict)
    """Language → source → share of that language's tokens (each sum 1), for stages that give `language_shares`."""
    seq_length: int = 8192
    """Tokens in a sample."""
    seed: int = 1234
    """Seed of every shuffled order."""
    isolate_documents: bool = False
    """Attention and positions restart at a document's start, and no loss predicts across it."""
    eod_mask_loss: bool = False
    """Leave out of the loss the prediction of a document's first token from the document before it."""
    heldout_fraction: float = 0.001
    """Part of each source's documents that never trains, chosen by a hash of their content."""
    heldout_samples: int = 64
    """Most samples per component that an evaluation reads."""
    exhausted: Literal["error", "reweight"] = "error"
    """When a component reaches its max_epochs: stop with an error, or give its share to what stands nearest to it."""
    cache_dir: str | None = None
    """Folder of the index cache; None puts it beside each corpus, in `.index_cache`."""
    adjustment: AdjustmentConfig = field(default_factory=AdjustmentConfig)
    """Live adjustment of topic shares."""

    def problems(self) -> list[str]:
        """Every contradiction that shows without opening a file, as `field: what is wrong; fix`."""
        found: list[str] = []
        for name in ("seq_length", "heldout_samples"):
            if getattr(self, name) <= 0:
                found.append(f"data.{name}: {getattr(self, name)} is not positive")
        if not 0 <= self.seed < 2**64:
            found.append(f"data.seed: {self.seed} is not in [0, 2^64)")
        found += fraction_problems("data.heldout_fraction", self.heldout_fraction)
        if not self.sources:
            found.append("data.sources: no source; name at least one corpus")
        for name, source in self.sources.items():
            found += self._source_problems(name, source)
        for language, shares in self.source_shares.items():
            found += self._named_shares(f"data.source_shares.{language}", shares, language)
        if not self.stages:
            found.append("data.stages: no stage; give at least one with a budget in tokens")
        names = [stage.name for stage in self.stages]
        twice = sorted({name for name in names if names.count(name) > 1})
        found += [f"data.stages: two stages are called {name!r}; rename one" for name in twice]
        for stage in self.stages:
            found += self._stage_problems(stage)
        found += self.adjustment.problems()
        budget = sum(stage.tokens for stage in self.stages)
        for number, point in enumerate(self.adjustment.schedule):
            where = f"data.adjustment.schedule[{number}]"
            found += self._topic_owners(f"{where}.topic_shares", point.topic_shares)
            if point.at_tokens >= budget:
                found.append(f"{where}.at_tokens: {point.at_tokens} lies behind the {budget} tokens of all stages")
        strategy = self.adjustment.strategy
        if strategy != "static" and not any(source.topics for source in self.sources.values()):
            found.append(f"data.adjustment.strategy: {strategy} moves topics, but no source has `topics: true`")
        return found

    def stage_weights(self, stage: StageConfig) -> dict[str, Fraction]:
        """The stage's exact weight of every source, zero included; sums to 1 in a config without problems."""
        weights = dict.fromkeys(self.sources, Fraction(0))
        if stage.weights is not None:
            weights.update({name: exact(share) for name, share in stage.weights.items()})
            return weights
        for language, language_share in (stage.language_shares or {}).items():
            shares = stage.source_shares.get(language) or self.source_shares.get(language) or {}
            for name, share in shares.items():
                weights[name] += exact(language_share) * exact(share)
        return weights

    def heldout_fraction_of(self, source: str) -> float:
        """Part of the source's documents that is held out."""
        own = self.sources[source].heldout_fraction
        return self.heldout_fraction if own is None else own

    def _source_problems(self, name: str, source: SourceConfig) -> list[str]:
        where, found = f"data.sources.{name}", []
        if not name or "/" in name or len(name) > MAX_COMPONENT_NAME:
            found.append(f"{where}: a source's name is 1 to {MAX_COMPONENT_NAME} characters without '/'; rename it")
        if not source.prefix:
            found.append(f"{where}.prefix: empty; give the path of the corpus without .bin/.idx")
        if source.max_epochs is not None and not 0 < source.max_epochs < float("inf"):
            found.append(f"{where}.max_epochs: {source.max_epochs} is no positive number; drop the source or the cap")
        if source.heldout_fraction is not None:
            found += fraction_problems(f"{where}.heldout_fraction", source.heldout_fraction)
        if isinstance(source.topic_shares, dict):
            found += share_problems(f"{where}.topic_shares", source.topic_shares)
        if not source.topics and (source.topic_shares != "natural" or source.unlabelled_topic is not None):
            found.append(f"{where}.topic_shares, unlabelled_topic: given without `topics: true`; add it")
        if source.min_documents < 0:
            found.append(f"{where}.min_documents: {source.min_documents} is negative; use 0 to merge no topics")
        if source.min_documents and not source.topics:
            found.append(f"{where}.min_documents: given without `topics: true`; add it")
        if not 0 < len(source.others) <= MAX_COMPONENT_NAME:
            found.append(f"{where}.others: a topic's name is 1 to {MAX_COMPONENT_NAME} characters; rename it")
        return found

    def _stage_problems(self, stage: StageConfig) -> list[str]:
        where, found = f"data.stages.{stage.name}", []
        if stage.tokens < self.seq_length:
            found.append(f"{where}.tokens: {stage.tokens} is less than a sample of {self.seq_length} tokens; raise it")
        if (stage.weights is None) == (stage.language_shares is None):
            found.append(f"{where}: give exactly one of weights and language_shares")
        if stage.weights is not None:
            found += self._named_shares(f"{where}.weights", stage.weights)
            if stage.source_shares:
                found.append(f"{where}.source_shares: only language_shares uses it; drop it")
        for language, shares in stage.source_shares.items():
            found += self._named_shares(f"{where}.source_shares.{language}", shares, language)
        if stage.language_shares is not None:
            found += share_problems(f"{where}.language_shares", stage.language_shares)
            known = {**self.source_shares, **stage.source_shares}
            unknown = [language for language in stage.language_shares if language not in known]
            found += [f"{where}.language_shares: no data.source_shares.{language}; add it" for language in unknown]
        for name in stage.orders:
            if name not in self.sources:
                found.append(f"{where}.orders: unknown source {name!r}; sources are {', '.join(self.sources)}")
        found += self._topic_owners(f"{where}.topic_shares", stage.topic_shares)
        for name, shares in stage.topic_shares.items():
            found += share_problems(f"{where}.topic_shares.{name}", shares)
        return found

    def _named_shares(self, where: str, shares: dict[str, Share], language: str | None = None) -> list[str]:
        found = share_problems(where, shares)
        for name in shares:
            if name not in self.sources:
                found.append(f"{where}: unknown source {name!r}; sources are {', '.join(self.sources)}")
            elif language is not None and self.sources[name].language != language:
                found.append(
                    f"{where}: source {name!r} has language {self.sources[name].language!r}; "
                    f"set data.sources.{name}.language to {language!r} or move it"
                )
        return found

    def _topic_owners(self, where: str, shares: dict[str, dict[str, Share]]) -> list[str]:
        return [
            f"{where}: {name!r} is not a source with `topics: true`"
            for name in shares
            if name not in self.sources or not self.sources[name].topics
        ]


def share_problems(where: str, shares: dict[str, Share]) -> list[str]:
    """Negative shares, shares that are no numbers, and a sum that is not exactly 1."""
    found, total = [], Fraction(0)
    for name, share in shares.items():
        try:
            value = exact(share)
        except ValueError as error:
            found.append(f"{where}.{name}: {error}")
            continue
        if value < 0:
            found.append(f"{where}.{name}: {share} is negative; use 0 or more")
        total += value
    if not found and total != 1:
        found.append(f"{where}: the shares sum to {float(total):.9g}, not 1; correct them, or write ratios like '1/3'")
    return found


def fraction_problems(where: str, fraction: float) -> list[str]:
    """A held-out fraction that leaves nothing to train on."""
    if 0 <= fraction < 1:
        return []
    return [f"{where}: {fraction} is not in [0, 1); use for instance 0.001"]
