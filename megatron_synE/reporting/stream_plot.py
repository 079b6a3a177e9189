"""One picture of a run: what is read when, what moved it, and what came of it.

Panels: shares of the components over tokens; training and held-out loss; held-out perplexity of each topic. A panel
without a number is left out, so before training there is only the first.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from megatron_synE.data.stream import DataStream
from megatron_synE.reporting.colours import colours
from megatron_synE.reporting.curves import ThinnedCurve
from megatron_synE.reporting.figures import import_figures
from megatron_synE.reporting.records import RunRecords

Curve = list[tuple[int, float]]
"""Points (tokens read, value) in their order."""

MANY_COMPONENTS = 36
"""With more, the legend names sources only."""
MARKS = {
    "adjustment": ("^", "black", "topic shares adjusted"),
    "measured": ("2", "black", "measured, shares kept"),
    "restoration": ("P", "tab:red", "share moved back to a source"),
    "schedule": ("v", "tab:blue", "scheduled shares"),
    "exhausted": ("X", "tab:red", "a component is exhausted"),
    "resume": ("D", "tab:green", "resumed"),
    "configuration": ("s", "tab:orange", "configuration changed"),
    "incident": ("*", "tab:purple", "incident"),
}
"""Kind → marker, colour and what the legend says."""
UNITS = ((1e12, "trillions"), (1e9, "billions"), (1e6, "millions"), (1e3, "thousands"))
CLIP_QUANTILE = 0.98
STAGE_LETTERS = 120
"""So many letters of a stage's name fit over the whole width."""


@dataclass(frozen=True)
class DrawnRecords:
    """What is drawn of a run's records."""

    loss: Curve
    heldout_loss: dict[str, Curve]
    """Component → loss on its held-out documents."""
    marks: dict[str, list[int]]
    """Kind of record (`resume`, `configuration`, `incident`) → tokens read when it was written."""
    num_missing: int
    """Losses that are no number."""
    num_damaged: int
    """Lines that cannot be read."""

    @property
    def losses(self) -> list[float]:
        """All of them."""
        return [value for curve in (self.loss, *self.heldout_loss.values()) for _, value in curve]


def stream_figure(stream: DataStream, records: RunRecords, samples: range, consumed: int | None) -> Any:
    """Draw a run, as a matplotlib Figure.

    Args:
        samples: of the stream, that are shown.
        consumed: samples read so far; None before training.

    Raises:
        ValueError: matplotlib is not installed.
    """
    figures = import_figures()
    first, end = (sample * stream.seq_length for sample in (samples.start, samples.stop))
    drawn = within(records, first, end)
    perplexity = perplexity_of_topics(stream, first, end)
    draws = [lambda axes: draw_mixture(axes, stream, samples, consumed)]
    if drawn.losses:
        draws.append(lambda axes: draw_losses(axes, drawn, colours(stream.component_names)))
    if perplexity:
        draws.append(lambda axes: draw_perplexity(axes, perplexity, colours(stream.component_names)))
    figure = figures.Figure(figsize=(12, 1.5 + 3.4 * len(draws)), layout="constrained")
    panels = figure.subplots(len(draws), 1, sharex=True, squeeze=False)[:, 0]
    for axes, draw in zip(panels, draws, strict=True):
        draw(axes)
    draw_marks(panels[0], marks(stream, drawn, first, end))
    unit, name = next(((unit, name) for unit, name in UNITS if end >= unit), (1, ""))
    panels[-1].set(xlim=(first, end), xlabel="tokens" + (f" ({name})" if name else ""))
    panels[-1].xaxis.set_major_formatter(lambda value, _: f"{value / unit:g}")
    draw_legend(figure, stream.component_names, marks(stream, drawn, first, end))
    return figure


def within(records: RunRecords, first: int, end: int) -> DrawnRecords:
    """The records of tokens [first, end]."""

    def cut(curve: ThinnedCurve) -> Curve:
        return [(point.tokens, point.value) for point in curve.points() if first <= point.tokens <= end]

    heldout = records.heldout.curves
    return DrawnRecords(
        loss=cut(records.loss),
        heldout_loss={name: part for name, curve in heldout.items() if (part := cut(curve))},
        marks={
            kind: [tokens for event in events if first <= (tokens := event["consumed_tokens"]) <= end]
            for kind in ("resume", "configuration", "incident")
            if (events := records.events[kind].records)
        },
        num_missing=records.loss.num_missing + sum(curve.num_missing for curve in heldout.values()),
        num_damaged=records.num_damaged,
    )


def perplexity_of_topics(stream: DataStream, first: int, end: int) -> dict[str, Curve]:
    """Component → perplexities that decisions were made of."""
    found: dict[str, Curve] = {}
    for decision in stream.decisions:
        if first <= decision.at_tokens <= end:
            for name, value in decision.perplexity.items():
                if "/" in name and math.isfinite(value):
                    found.setdefault(name, []).append((decision.at_tokens, value))
    return found


def marks(stream: DataStream, records: DrawnRecords, first: int, end: int) -> dict[str, list[int]]:
    """Kind of mark → tokens."""
    found: dict[str, list[int]] = {kind: [] for kind in MARKS}
    for segment in stream.timeline.segments:
        if segment.reason in ("adjustment", "restoration", "schedule", "exhausted", "config"):
            kind = "configuration" if segment.reason == "config" else segment.reason
            found[kind].append(segment.start * stream.seq_length)
    found["measured"] = [decision.at_tokens for decision in stream.decisions if not decision.changed]
    for kind, tokens in records.marks.items():
        found[kind] += tokens
    shown = {kind: sorted({token for token in tokens if first <= token <= end}) for kind, tokens in found.items()}
    return {kind: tokens for kind, tokens in shown.items() if tokens}


def draw_mixture(axes: Any, stream: DataStream, samples: range, consumed: int | None) -> None:
    """Shares of the components, stacked; the stages' borders and names; what is not yet read is paler."""
    segments = [segment for segment in stream.timeline.segments if segment.start < samples.stop]
    segments = segments[max(0, sum(segment.start <= samples.start for segment in segments) - 1) :]
    edges = [segment.start * stream.seq_length for segment in segments] + [samples.stop * stream.seq_length]
    edges[0] = samples.start * stream.seq_length
    shares = [stream.shares(segment.start) for segment in segments]
    bottom = np.zeros(len(shares))
    for name, colour in colours(stream.component_names).items():
        top = bottom + [share[name] for share in shares]
        axes.stairs(top, edges, baseline=bottom, fill=True, color=colour)
        bottom = top
    if consumed is not None and samples.start <= consumed < samples.stop:
        axes.axvspan(consumed * stream.seq_length, edges[-1], color="white", alpha=0.45, lw=0)
        axes.axvline(consumed * stream.seq_length, color="black", lw=1)
    said = ["planned" if consumed is None else f"{consumed:,} of {stream.num_samples:,} samples read"]
    if samples != range(stream.num_samples):
        said.append(f"samples {samples.start:,} to {samples.stop:,} shown")
    if num_narrow := draw_stages(axes, stream, samples):
        said.append(f"{num_narrow} stages too narrow for their names")
    axes.set_title(f"Mixture ({', '.join(said)})", pad=38)
    axes.set(ylabel="share of tokens", ylim=(0, 1))


def draw_stages(axes: Any, stream: DataStream, samples: range) -> int:
    """A line where a stage begins, and its name above; returns how many have no room for one."""
    num_narrow = 0
    for stage in stream.planner.stages:
        start, stop = max(stage.start, samples.start), min(stage.end, samples.stop)
        if start >= stop:
            continue
        if start > samples.start:
            axes.axvline(start * stream.seq_length, color="black", ls="--", lw=1)
        if (stop - start) * STAGE_LETTERS < len(stage.name) * len(samples):
            num_narrow += 1
            continue
        middle = (start + stop) / 2 * stream.seq_length
        axes.annotate(stage.name, (middle, 1.09), xycoords=("data", "axes fraction"), ha="center", fontsize="small")
    return num_narrow


def draw_losses(axes: Any, records: DrawnRecords, colour_of: Mapping[str, Any]) -> None:
    """Training loss as a line, held-out losses as points."""
    axes.plot(*points(records.loss), color="0.45", lw=0.8, label="training", zorder=1)
    for name, curve in records.heldout_loss.items():
        axes.plot(*points(curve), color=colour_of.get(name, "black"), marker=".", ms=5, lw=1, zorder=2)
    limits, cut = clipped(records.losses, records.num_missing)
    damaged = f"{records.num_damaged} unreadable records left out" if records.num_damaged else ""
    axes.set_title("; ".join(filter(None, ["Loss (grey: training, points: held-out)", cut, damaged])))
    axes.set(ylabel="loss", ylim=limits)


def draw_perplexity(axes: Any, curves: Mapping[str, Curve], colour_of: Mapping[str, Any]) -> None:
    """Held-out perplexity of each topic at each measurement."""
    for name, curve in curves.items():
        axes.plot(*points(curve), color=colour_of[name], marker=".", ms=5, lw=1)
    limits, cut = clipped([math.log(value) for curve in curves.values() for _, value in curve])
    axes.set_title("; ".join(filter(None, ["Held-out perplexity of the topics, as decided upon", cut])))
    axes.set(ylabel="perplexity", yscale="log", ylim=[math.exp(min(limit, 700)) for limit in limits])


def points(curve: Curve) -> tuple[list[int], list[float]]:
    """x and y."""
    return [tokens for tokens, _ in curve], [value for _, value in curve]


def clipped(values: Sequence[float], num_missing: int = 0) -> tuple[tuple[float, float], str]:
    """Limits of an axis that the few highest of the finite `values` do not stretch, and what to say of those that are
    cut off, and of the `num_missing` that are no number."""
    low, usual, high = np.min(values), np.quantile(values, CLIP_QUANTILE), np.max(values)
    top = usual + 0.25 * (usual - low)
    said = []
    if num_cut := int((np.array(values) > top).sum()):
        said.append(f"{num_cut:,} of {len(values) + num_missing:,} values above the edge are cut off")
    else:
        top = high
    if num_missing:
        said.append(f"{num_missing:,} are no number")
    margin = 0.04 * (top - low) or 0.5
    return (low - margin, top + margin), ", ".join(said)


def draw_marks(axes: Any, found: Mapping[str, Sequence[int]]) -> None:
    """A strip of marks above the panel."""
    for kind, tokens in found.items():
        marker, colour, _ = MARKS[kind]
        strip = {"transform": axes.get_xaxis_transform(), "clip_on": False}
        axes.plot(tokens, [1.04] * len(tokens), marker, color=colour, ms=7, **strip)


def draw_legend(figure: Any, components: Sequence[str], found: Mapping[str, Sequence[int]]) -> None:
    """Sources with their topics, then the marks."""
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    handles: list[Any] = []
    sources = dict.fromkeys(name.partition("/")[0] for name in components)
    for source in sources:
        members = [name for name in components if name.partition("/")[0] == source]
        colour_of = colours(components)
        if members == [source]:
            handles.append(Patch(color=colour_of[source], label=source))
        elif len(components) > MANY_COMPONENTS:
            middle = colour_of[members[len(members) // 2]]
            handles.append(Patch(color=middle, label=f"{source} ({len(members)} topics)"))
        else:
            handles.append(Line2D([], [], ls="", label=source))
            handles += [Patch(color=colour_of[name], label=f"  {name.partition('/')[2]}") for name in reversed(members)]
    for kind, tokens in found.items():
        marker, colour, text = MARKS[kind]
        handles.append(Line2D([], [], marker=marker, color=colour, ls="", label=f"{text} ({len(tokens)})"))
    figure.legend(handles=handles, loc="outside right upper", fontsize="small", frameon=False)
