"""The charts of one run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from megatron_synE.reporting.charts import (
    MAX_LINES,
    Chart,
    ChartList,
    evenly,
    line,
    line_of_points,
    mixture_chart,
    named,
    palette,
    simple_chart,
    topics_chart,
)
from megatron_synE.reporting.consumption import Consumption
from megatron_synE.reporting.curves import ThinnedCurve
from megatron_synE.reporting.learning import LARGEST_EXPONENT, perplexity
from megatron_synE.reporting.records import Mixture
from megatron_synE.reporting.run_files import RunData

Json = dict[str, Any]

MAX_MIXTURES = 500
"""In a chart."""


def run_charts(run: RunData, other: RunData | None, read: Consumption | None, events: Sequence[Json]) -> list[Chart]:
    """All charts that have a point, in their order.

    Args:
        other: a run to draw beside this one.
        events: as `history.event_rows` gives them, to be marked.
    """
    found, records = ChartList(), run.records
    marks = [event for event in events if event["kind"] != "decision"]
    for chart in (_losses(run, other), _heldout(run), _benchmarks(run)):
        found.add(chart, marks=marks)
    mixtures = _mixtures(run, read)
    if (mixture := _mixture(run, read, mixtures)) is not None:
        found.add(mixture, marks=marks)
    for chart in _topics(run, read, mixtures):
        found.add(chart)
    found.add(_component_losses(run))
    si = {"exponentformat": "SI"}
    for name, title, note, unit, options in (
        ("learning_rate", "Learning rate", "Of each logged step.", "learning rate", {}),
        ("grad_norm", "Gradient norm", "Before clipping.", "norm", {}),
        ("tokens_per_second", "Throughput", "Tokens of the whole job in a second.", "tokens/s", si),
        ("mfu", "Model FLOPs utilisation", "Part of the devices' peak.", "MFU", {"tickformat": ".0%"}),
        ("tflops_per_device", "Arithmetic", "Model FLOPs of each device.", "TFLOP/s", {}),
        ("peak_memory_gib", "Memory", "Most that the main process had held since its start.", "GiB", {}),
        ("global_batch_size", "Batch size", "Samples in a step.", "samples", {}),
    ):
        curve = records.steps[name]
        if name != "global_batch_size" or len({point.value for point in curve.points()}) > 1:
            data = [line(title, curve, "--accent")]
            found.add(simple_chart(name, title, note, data, unit, records.last_tokens, **options), marks=marks)
    found.add(_seconds(run), marks=marks)
    return found.charts


def _losses(run: RunData, other: RunData | None) -> Chart:
    records = run.records
    data = [line("training", records.loss, "--accent")]
    means = records.heldout_means.get("mean_loss")
    if means is not None:
        data.append(line("held-out, mean over tokens", means, "--gain"))
    if other is not None:
        data.append(line(f"training of {other.name}", other.records.loss, "--muted"))
        if (theirs := other.records.heldout_means.get("mean_loss")) is not None:
            data.append(line(f"held-out of {other.name}", theirs, "--loss"))
    note = "Training loss of each logged step, and the mean over all held-out documents."
    end = max(run.records.last_tokens, other.records.last_tokens if other is not None else 0)
    return simple_chart("loss", "Loss", note, data, "loss", end)


def _heldout(run: RunData) -> Chart:
    curves = run.records.heldout.curves
    note = "Loss on documents of each component that are never trained on: what falls is learned, what rises is lost."
    title, end = "Held-out loss over the run", run.records.last_tokens
    return simple_chart("held-out loss", title, note, _lines(curves), "loss", end)


def _component_losses(run: RunData) -> Chart:
    curves = run.records.loss_by_component
    note = "Loss of the training samples of each component."
    title = "Training loss by component"
    return simple_chart("training loss by component", title, note, _lines(curves), "loss", run.records.last_tokens)


def _benchmarks(run: RunData) -> Chart:
    curves = run.records.benchmarks.curves
    tasks = list(dict.fromkeys(name.rpartition(" ")[0] for name in curves))
    colour_of = palette(tasks)
    data = [
        {**line(name, curve, colour_of[name.rpartition(" ")[0]]),
         "line": {"color": colour_of[name.rpartition(" ")[0]], "dash": "solid" if name.endswith(" acc") else "dot"}}
        for name, curve in curves.items()
    ]  # fmt: skip
    note = "Tasks scored by log-likelihood during the run; dotted where it is not plain accuracy."
    title, end = "Benchmarks over the run", run.records.last_tokens
    return simple_chart("benchmarks", title, note, data, "accuracy", end, tickformat=".0%")


def _seconds(run: RunData) -> Chart:
    steps = run.records.steps
    data = [
        line("step", steps["step_seconds"], "--accent"),
        line("waiting for data", steps["data_seconds"], "--loss"),
    ]
    note = "Of a whole step, and of these the wait for its batch."
    end = run.records.last_tokens
    return simple_chart("step seconds", "Seconds of a step", note, data, "seconds", end, rangemode="tozero")


def _mixture(run: RunData, read: Consumption | None, mixtures: Sequence[Mixture]) -> Chart | None:
    records = run.records
    if not mixtures:
        return None
    if read is None:
        note = "Share of each component at the logged steps: there is no checkpoint to tell the plan."
        read_tokens, end = None, records.last_tokens
    else:
        note = "Share of each component, as it was read and as it is planned."
        read_tokens, end = max(records.last_tokens, read.consumed_samples * read.seq_length), read.planned_tokens
    drawn = evenly(mixtures, MAX_MIXTURES)
    num_mixtures = max(len(mixtures), records.mixtures.num_recorded)
    if len(drawn) < num_mixtures:
        note += f" {len(drawn):,} of {num_mixtures:,} mixtures are drawn."
    return mixture_chart([one.tokens for one in drawn], [one.shares for one in drawn], end, read_tokens, note)


def _mixtures(run: RunData, read: Consumption | None) -> list[Mixture]:
    """Up to the checkpoint and from now on by its state, which is exact; between them by the logged steps."""
    recorded = run.records.mixtures.kept
    if read is None:
        return recorded
    names, length = [component.component for component in read.components], read.seq_length
    planned = [
        Mixture(
            segment.start * length,
            {name: count / sum(segment.numerators) for name, count in zip(names, segment.numerators, strict=True)},
        )
        for segment in read.state.segments
    ]
    saved = read.consumed_samples * length
    now = max(saved, run.records.last_tokens)
    since = [one for one in recorded if saved <= one.tokens < now]
    ahead = [one for one in planned if one.tokens >= (now if since else saved)]
    return [*(one for one in planned if one.tokens < saved), *since, *ahead]


def _topics(run: RunData, read: Consumption | None, mixtures: Sequence[Mixture]) -> list[Chart]:
    """For each source with topics: perplexities over shares, with the decisions."""
    sources: dict[str, list[str]] = {}
    for name in run.records.heldout.curves:
        if "/" in name:
            sources.setdefault(name.partition("/")[0], []).append(name)
    in_state = [] if read is None else [decision.at_tokens for decision in read.state.decisions if decision.changed]
    decisions = sorted({*run.records.decision_tokens.kept, *in_state})
    charts, end_tokens = [], run.records.last_tokens
    for source, names in sources.items():
        colour_of, shares = palette(map(_topic, names)), _shares_in_source(names, mixtures, end_tokens)
        upper = [_perplexity(name, run.records.heldout.curves[name], colour_of[_topic(name)]) for name in names]
        lower = [
            {"type": "scatter", "mode": "lines", **named(_topic(name)), "x": shares[name][0], "y": shares[name][1],
             "line": {"color": colour_of[_topic(name)], "width": 1.6, "shape": "hv"}, "hovertemplate": "%{y:.2%}"}
            for name in names
        ]  # fmt: skip
        note = "Above: perplexity on held-out documents. Below: share of the topic in its source. A line: a decision."
        num_decisions = max(len(decisions), run.records.decision_tokens.num_recorded)
        if num_decisions > MAX_LINES:
            note += f" {MAX_LINES} of {num_decisions:,} are drawn."
        charts.append(topics_chart(source, upper, lower, decisions, note, end_tokens or None))
    return charts


def _perplexity(name: str, loss: ThinnedCurve, colour: str) -> Json:
    finite = [point for point in loss.points() if point.value < LARGEST_EXPONENT]
    points = [point._replace(value=perplexity(point.value)) for point in finite]
    return line_of_points(_topic(name), points, colour)


def _shares_in_source(
    names: Sequence[str], mixtures: Sequence[Mixture], end_tokens: int
) -> dict[str, tuple[list[int], list[float]]]:
    """Component → tokens at which the mixture changes, up to where the run stands, and its share in the source there.
    """
    found: dict[str, tuple[list[int], list[float]]] = {name: ([], []) for name in names}
    read = evenly([one for one in mixtures if one.tokens < end_tokens], MAX_MIXTURES)
    places = [(one.tokens, one.shares) for one in read]
    for tokens, shares in [*places, *((end_tokens, shares) for _, shares in places[-1:])]:
        total = sum(shares.get(name, 0) for name in names)
        for name in names:
            if total:
                found[name][0].append(tokens)
                found[name][1].append(shares.get(name, 0) / total)
    return found


def _topic(name: str) -> str:
    return name.partition("/")[2]


def _lines(curves: Mapping[str, ThinnedCurve]) -> list[Json]:
    colour_of = palette(curves)
    return [line(name, curve, colour_of[name]) for name, curve in curves.items()]
