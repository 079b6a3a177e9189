"""The stream's state as JSON: small, self-contained, and enough to rebuild the order of every sample."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from megatron_synE.data.components import Component
from megatron_synE.data.segments import Segment

FORMAT_VERSION = 1


@dataclass(frozen=True)
class Decision:
    """One measurement, and what was decided on it."""

    at_sample: int
    at_tokens: int
    perplexity: dict[str, float]
    """Component → held-out perplexity."""
    shares_before: dict[str, float]
    """Component → share in its source, of the sources with topics."""
    shares_after: dict[str, float]
    """The same from at_sample on."""
    inputs: dict[str, dict[str, float]] = field(default_factory=dict)
    """The strategy's intermediate values (`change`, `delta`, `factor`) → component → value."""
    changed: bool = False
    """Whether a new segment was opened; the first measurement opens none."""


@dataclass(frozen=True)
class StreamState:
    """What a checkpoint keeps of the stream."""

    seq_length: int
    seed: int
    num_samples: int
    components: list[dict[str, Any]]
    """Name, identity (hash of what determines its documents) and tokens of an epoch, per component; and `order`, a hash
    of the perplexities, where something was read in their order."""
    plan: dict[str, Any]
    """What the segments ahead were planned from."""
    segments: list[Segment]
    decisions: list[Decision]
    sample: int | None = None
    """Samples consumed when the state was taken, where the caller said so."""

    def to_json(self) -> dict[str, Any]:
        """A JSON object."""
        content = asdict(self)
        content["segments"] = [segment.to_json() for segment in self.segments]
        return {"format_version": FORMAT_VERSION, **content}

    @staticmethod
    def from_json(content: Mapping[str, Any]) -> StreamState:
        """Inverse of `to_json`. ValueError when the object is not one of ours."""
        version = content.get("format_version")
        if version != FORMAT_VERSION:
            raise ValueError(f"stream state: format version {version!r} is not {FORMAT_VERSION}")
        try:
            return StreamState(
                seq_length=int(content["seq_length"]),
                seed=int(content["seed"]),
                num_samples=int(content["num_samples"]),
                components=list(content["components"]),
                plan=dict(content["plan"]),
                segments=[Segment.from_json(segment) for segment in content["segments"]],
                decisions=[Decision(**decision) for decision in content["decisions"]],
                sample=None if content.get("sample") is None else int(content["sample"]),
            )
        except (KeyError, TypeError) as error:
            raise ValueError(f"stream state: incomplete or damaged ({error!r})") from error

    def check_against(self, seq_length: int, seed: int, components: Sequence[Component]) -> None:
        """ValueError with everything in which the config or the corpora no longer fit the samples already counted."""
        wrong = []
        if self.seq_length != seq_length:
            wrong.append(f"data.seq_length: {seq_length}, but the checkpoint counted in samples of {self.seq_length}")
        if self.seed != seed:
            wrong.append(f"data.seed: {seed}, but the checkpoint shuffled with {self.seed}")
        known = {component.name: component for component in components}
        for number, recorded in enumerate(self.components):
            name = recorded["name"]
            if name not in known:
                if any(segment.numerators[number] for segment in self.segments):
                    wrong.append(f"data.sources: {name!r} of the checkpoint is gone; keep it, with weight 0 if need be")
            elif known[name].identity != recorded["identity"]:
                source = known[name].source
                wrong.append(
                    f"data.sources.{source.name}: the corpus {source.config.prefix}, its topics or its held-out "
                    "fraction changed since the checkpoint; restore them, or name the new corpus as a further source"
                )
            elif "order" in recorded and known[name].source.perplexity_order_digest != recorded["order"]:
                source = known[name].source
                wrong.append(
                    f"data.sources.{source.name}: since the checkpoint, which read documents by perplexity, "
                    f"{source.config.prefix}.perplexity.npy was annotated anew or `unscored` changed; restore them, or "
                    "name a copy of the corpus under another prefix, with the new perplexities, as a further source"
                )
        if wrong:
            lines = dict.fromkeys(f"  {line}" for line in wrong)  # a source's topics share theirs
            raise ValueError("\n".join(["the checkpoint's data stream does not fit:", *lines]))

    def segments_for(self, components: Sequence[Component]) -> list[Segment]:
        """The segments with cursors and numerators in the order of `components`; new components stand at 0."""
        place = {recorded["name"]: number for number, recorded in enumerate(self.components)}
        orders = {component.source.name: component.chain[0][0] for component in components}
        found = []
        for segment in self.segments:
            numerators, cursors = [], []
            for component in components:
                number = place.get(component.name)
                numerators.append(0 if number is None else segment.numerators[number])
                cursors.append(0 if number is None else segment.cursors[number])
            found.append(
                replace(
                    segment,
                    numerators=tuple(numerators),
                    cursors=tuple(cursors),
                    orders={**orders, **segment.orders},
                )
            )
        return found
