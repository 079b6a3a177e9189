"""The stream's state as JSON: small, self-contained, and enough to rebuild the order of every sample."""

from __future__ import annotations

import reprlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from itertools import pairwise
from typing import Any, Literal, get_args

from megatron_synE.config.json_fields import MAX_INTEGER, JsonFields
from megatron_synE.data.components import Component
from megatron_synE.data.segments import Segment

FORMAT_VERSION = 1
Moves = Literal["topics", "sources"]


@dataclass(frozen=True)
class Decision:
    """One measurement, and what was decided on it: on the topics of the sources, or on the sources themselves."""

    at_sample: int
    at_tokens: int
    perplexity: dict[str, float] = field(default_factory=dict)
    """Component → held-out perplexity that topics were decided on."""
    shares_before: dict[str, float] = field(default_factory=dict)
    """Component → share in its source, of the sources with topics; source → weight, where sources were moved."""
    shares_after: dict[str, float] = field(default_factory=dict)
    """The same from at_sample on."""
    inputs: dict[str, dict[str, float]] = field(default_factory=dict)
    """What led to it: the strategy's intermediate values (`change`, `delta`, `factor`) → component → value; of sources,
    `baseline`, `value` and `bound` → what was forgotten → value, and `planned_weight` → source → value."""
    changed: bool = False
    """Whether a new segment was opened; the first measurement opens none."""
    moves: Moves = "topics"
    """Whose shares are decided on."""

    @staticmethod
    def from_json(fields: JsonFields) -> Decision:
        """Inverse of `asdict`. ValueError naming the field."""
        inputs = fields.inner("inputs")
        return Decision(
            at_sample=fields.integer("at_sample"),
            at_tokens=fields.integer("at_tokens"),
            perplexity=fields.numbers_by_name("perplexity"),
            shares_before=fields.numbers_by_name("shares_before"),
            shares_after=fields.numbers_by_name("shares_after"),
            inputs={name: inputs.numbers_by_name(name) for name in inputs.content},
            changed=fields.flag("changed"),
            moves=moves_from_json(fields) if fields.has("moves") else "topics",
        )


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
    def from_json(content: object) -> StreamState:
        """Inverse of `to_json`. ValueError naming the first field that is not as `to_json` writes it."""
        fields = JsonFields(content, "stream state: ", "use another checkpoint")
        if fields.content.get("format_version") != FORMAT_VERSION:
            version = reprlib.repr(fields.content.get("format_version"))
            raise fields.wrong("format_version", f"is {version}, not {FORMAT_VERSION}")
        components = [component_from_json(entry) for entry in fields.inner_list("components")]
        names = [component["name"] for component in components]
        if len(set(names)) < len(names):
            raise fields.wrong("components", "names one twice")
        seq_length = fields.integer("seq_length", low=1, high=2**31)
        num_samples = fields.integer("num_samples", low=1, high=MAX_INTEGER // seq_length)
        segments = [Segment.from_json(entry, names) for entry in fields.inner_list("segments")]
        check_sequence(fields, segments, num_samples)
        decisions = [Decision.from_json(entry) for entry in fields.inner_list("decisions")]
        if any(later.at_sample < earlier.at_sample for earlier, later in pairwise(decisions)):
            raise fields.wrong("decisions", "do not ascend")
        return StreamState(
            seq_length=seq_length,
            seed=fields.integer("seed", high=2**64 - 1),
            num_samples=num_samples,
            components=components,
            plan=fields.inner("plan").content,
            segments=segments,
            decisions=decisions,
            sample=fields.integer("sample", high=num_samples) if fields.has("sample") else None,
        )

    def check_against(self, seq_length: int, seed: int, components: Sequence[Component]) -> None:
        """ValueError with everything in which the config or the corpora no longer fit the samples already counted."""
        wrong = []
        if self.seq_length != seq_length:
            wrong.append(f"data.seq_length: {seq_length}, but the checkpoint counted in samples of {self.seq_length}")
        if self.seed != seed:
            wrong.append(f"data.seed: {seed}, but the checkpoint shuffled with {self.seed}")
        used = [any(segment.numerators[number] for segment in self.segments) for number in range(len(self.components))]
        for recorded, was_read in zip(self.components, used, strict=True):
            wrong += misfit(recorded, was_read, components)
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


def misfit(recorded: Mapping[str, Any], was_read: bool, components: Sequence[Component]) -> list[str]:
    """In which a component of a checkpoint is not what it was, if in anything.

    Args: recorded: what the state says of it. was_read: whether a segment gives it a share.
    """
    name, source_name = recorded["name"], recorded["name"].partition("/")[0]
    component = next((component for component in components if component.name == name), None)
    source = next((component.source for component in components if component.source.name == source_name), None)
    if source is None:
        gone = f"data.sources: {name!r} of the checkpoint is gone; keep it, with weight 0 if need be"
        return [gone] if was_read else []
    where, prefix = f"data.sources.{source_name}", source.config.prefix
    if was_read if component is None else component.identity != recorded["identity"]:
        return [
            f"{where}: the corpus {prefix}, its topics, their merge (min_documents, others, unlabelled_topic) or its "
            "held-out fraction changed since the checkpoint; restore them, or name the new corpus as a further source"
        ]
    if component is not None and "order" in recorded and source.perplexity_order_digest != recorded["order"]:
        return [
            f"{where}: since the checkpoint, which read documents by perplexity, {prefix}.perplexity.npy was annotated "
            "anew or `unscored` changed; restore them, or name a copy of the corpus under another prefix, with the new "
            "perplexities, as a further source"
        ]
    return []


def moves_from_json(fields: JsonFields) -> Moves:
    """Whose shares a decision moves."""
    moves = fields.text("moves")
    if moves not in get_args(Moves):
        raise fields.wrong("moves", f"is {reprlib.repr(moves)}, not one of {', '.join(get_args(Moves))}")
    return moves  # type: ignore[return-value]


def component_from_json(fields: JsonFields) -> dict[str, Any]:
    """What a state says of a component."""
    found: dict[str, Any] = {name: fields.text(name) for name in ("name", "identity")}
    found["num_tokens"] = fields.integer("num_tokens", low=1)
    if "order" in fields.content:
        found["order"] = fields.text("order")
    return found


def check_sequence(fields: JsonFields, segments: Sequence[Segment], num_samples: int) -> None:
    """ValueError where segments do not ascend from sample 0 and no cursor, or a cursor is not where the segment before
    it leads: every order honours the shares within one sample."""
    if not segments or segments[0].start != 0 or any(segments[0].cursors):
        raise fields.wrong("segments", "does not begin at sample 0 of every component")
    for number, (before, after) in enumerate(pairwise(segments), 1):
        length, period = after.start - before.start, sum(before.numerators)
        if length <= 0 or after.start >= num_samples:
            raise fields.wrong(f"segments[{number}].start", f"is {after.start}, after {before.start} of {num_samples}")
        read = [end - start for start, end in zip(before.cursors, after.cursors, strict=True)]
        strays = (abs(k * period - length * n) >= period for k, n in zip(read, before.numerators, strict=True))
        if sum(read) != length or any(strays):
            raise fields.wrong(f"segments[{number}].cursors", "is not where the segment before it leads")
