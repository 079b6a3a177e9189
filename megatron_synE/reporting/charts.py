"""Charts as plotly takes them: JSON objects with `data` and `layout`. Colours that follow light and dark are names of
CSS variables (`--muted`), which the page's script looks up."""

from __future__ import annotations

import html
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from megatron_synE.reporting.colours import colours, css
from megatron_synE.reporting.curves import Point, ThinnedCurve

Json = dict[str, Any]

FEW_POINTS = 60
"""A curve of so many shows each of its points."""
MAX_MARKS = 200
"""Of each kind in a chart."""
MAX_LINES = 60
"""Over the whole height of a chart."""
MARKS = {
    "resume": ("diamond", "◆", "resumed"),
    "killed": ("x", "✖", "ended without a word"),
    "stop": ("square", "■", "stopped"),
    "configuration": ("hexagon", "⬢", "configuration changed"),
    "incident": ("star", "★", "incident"),
    "forgetting": ("triangle-down", "▼", "forgetting"),
}
"""Kind of event → plotly's symbol, the same as a letter, and words. Other kinds are not marked."""


@dataclass(frozen=True)
class Chart:
    """One chart of a page."""

    name: str
    """Identifies it in the page."""
    title: str
    note: str
    """What it shows, in a sentence."""
    data: list[Json]
    layout: Json
    has_legend: bool = True
    height_pixels: int = 320

    def to_json(self) -> Json:
        """For the page's script."""
        return {"name": self.name, "title": self.title, "note": self.note, "data": self.data, "layout": self.layout,
                "has_legend": self.has_legend, "height_pixels": self.height_pixels}  # fmt: skip


@dataclass
class ChartList:
    """Charts in their order; those without a point are left out."""

    charts: list[Chart] = field(default_factory=list)

    def add(self, chart: Chart, *, marks: Sequence[Json] = ()) -> None:
        """One more, with a row of marks above it."""
        if any(trace["x"] for trace in chart.data):
            chart.data.extend(mark_traces(marks, chart))
            self.charts.append(chart)


def palette(components: Iterable[str]) -> dict[str, str]:
    """Component → a colour that reads on white and on black; the same for the same components in any order."""
    shades = colours(sorted(components), darkest=0.4, lightest=0.62, saturation=0.5)
    return {name: css(colour) for name, colour in shades.items()}


def line(name: str, curve: ThinnedCurve, colour: str, **options: Any) -> Json:
    """A curve over tokens."""
    return line_of_points(name, curve.points(), colour, **options)


def line_of_points(name: str, points: Sequence[Point], colour: str, **options: Any) -> Json:
    """The same of points that are there already."""
    few = len(points) <= FEW_POINTS
    trace = {
        "type": "scatter", "mode": "lines+markers" if few else "lines",
        **named(name),
        "x": [point.tokens for point in points],
        "y": [point.value for point in points],
        "customdata": [point.step for point in points],
        "line": {"color": colour, "width": 1.6},
        "hovertemplate": "%{y} · step %{customdata:,}",
    }  # fmt: skip
    return {**trace, **({"marker": {"color": colour, "size": 5}, "cliponaxis": False} if few else {}), **options}


def named(name: str) -> Json:
    """plotly reads tags and entities in a name; `meta` has it as it is."""
    return {"name": html.escape(name), "meta": {"name": name}}


def token_axis(end_tokens: int | None = None) -> Json:
    """The x axis of nearly all charts."""
    axis: Json = {"title": {"text": "tokens read"}, "exponentformat": "B", "hoverformat": ",d", "zeroline": False}
    return {**axis, "range": [0, end_tokens]} if end_tokens else {**axis, "rangemode": "tozero"}


def value_axis(title: str, **options: Any) -> Json:
    """A y axis."""
    return {"title": {"text": title}, "zeroline": False, "exponentformat": "power", "automargin": True, **options}


def logarithmic(values: Iterable[float]) -> Json:
    """What makes a y axis logarithmic, with round numbers on it."""
    logs = [math.log10(value) for value in values if value > 0]
    if not logs:
        return {}
    low, high = min(logs), max(logs)
    powers = range(math.floor(low), math.ceil(high) + 1)
    factors = (1, 2, 5) if high - low < 3 else (1,)
    ticks = [factor * 10.0**power for power in powers for factor in factors]
    margin = 0.06 * (high - low) or 0.1
    return {
        "type": "log", "range": [low - margin, high + margin], "tickvals": ticks,
        "ticktext": [f"{tick:,.0f}" if tick >= 1 else f"{tick:g}" for tick in ticks],
    }  # fmt: skip


def simple_chart(
    name: str, title: str, note: str, data: Sequence[Json], unit: str, end_tokens: int | None = None, **axis: Any
) -> Chart:
    """Curves over tokens on one axis."""
    values = {value for trace in data for value in trace["y"]}
    if len(values) == 1 and (value := values.pop()):  # a flat curve in the middle
        axis = {"range": sorted((0.9 * value, 1.1 * value)), **axis}
    layout = {"xaxis": token_axis(end_tokens), "yaxis": value_axis(unit, **axis)}
    return Chart(name, title, note, list(data), layout, has_legend=len(data) > 1)


def mixture_chart(
    starts: Sequence[int], shares: Sequence[Mapping[str, float]], end_tokens: int, read_tokens: int | None, note: str
) -> Chart:
    """Stacked shares of all components.

    Args:
        starts: tokens at which each mixture begins.
        shares: the mixtures.
        end_tokens: where the last one ends.
        read_tokens: how far the run has come; None where the chart ends there.
    """
    names = list(dict.fromkeys(name for mixture in shares for name in mixture))
    colour_of = palette(names)
    data = [
        {
            "type": "scatter", "mode": "lines", "stackgroup": "shares", **named(name),
            "x": [*starts, end_tokens],
            "y": [mixture.get(name, 0.0) for mixture in (*shares, shares[-1])],
            "line": {"color": colour_of[name], "width": 0, "shape": "hv"}, "fillcolor": colour_of[name],
            "hovertemplate": "%{y:.2%}",
        }
        for name in names
        if any(mixture.get(name) for mixture in shares)
    ]  # fmt: skip
    layout: Json = {"xaxis": token_axis(end_tokens), "yaxis": value_axis("share", range=[0, 1], tickformat=".0%")}
    if read_tokens is not None and read_tokens < end_tokens:
        layout["shapes"] = [vertical(read_tokens, "--ink", dash="solid")]
        layout["annotations"] = [
            {"x": read_tokens, "y": 1, "yref": "paper", "yanchor": "bottom", "text": "read so far", "showarrow": False}
        ]
    return Chart("mixture", "Mixture", note, data, layout)


def topics_chart(
    source: str, perplexity: Sequence[Json], shares: Sequence[Json], decisions: Sequence[int], note: str,
    end_tokens: int | None,
) -> Chart:  # fmt: skip
    """Held-out perplexity of a source's topics above, their shares in the source below, a line at each decision."""
    logs = logarithmic(value for trace in perplexity for value in trace["y"])
    lower = [{**trace, "yaxis": "y3", "showlegend": False} for trace in shares]
    layout = {
        "xaxis": {**token_axis(end_tokens), "anchor": "y3"},
        "yaxis": value_axis("perplexity", domain=[0.53, 1], **logs),
        "yaxis3": value_axis("share in the source", domain=[0, 0.45], tickformat=".0%"),
        "shapes": [vertical(tokens, "--muted") for tokens in evenly(decisions, MAX_LINES)],
    }
    return Chart(f"topics of {source}", f"Topics of {source}", note, [*perplexity, *lower], layout, height_pixels=460)


def vertical(tokens: int, colour: str, dash: str = "dot") -> Json:
    """A line over the whole height."""
    return {"type": "line", "x0": tokens, "x1": tokens, "y0": 0, "y1": 1, "yref": "paper",
            "line": {"color": colour, "width": 1, "dash": dash}}  # fmt: skip


def mark_traces(events: Sequence[Json], chart: Chart) -> list[Json]:
    """A row of symbols at the upper edge, by kind; adds their axis to the chart."""
    kinds: dict[str, list[Json]] = {}
    gone_on = {event["tokens"] for event in events if event["kind"] == "resume"}
    for event in events:
        if event["kind"] in MARKS and not (event["kind"] == "stop" and event["tokens"] in gone_on):
            kinds.setdefault(event["kind"], []).append(event)
    if kinds:
        chart.layout["yaxis2"] = {"overlaying": "y", "range": [0, 1], "visible": False, "fixedrange": True}
        if "domain" in chart.layout["yaxis"]:
            chart.layout["yaxis2"]["domain"] = chart.layout["yaxis"]["domain"]
    return [
        {
            "type": "scatter", "mode": "markers", "yaxis": "y2", "cliponaxis": False, "name": MARKS[kind][2],
            "meta": {"name": MARKS[kind][2], "glyph": MARKS[kind][1]},
            "x": [event["tokens"] for event in shown], "y": [1] * len(shown),
            "text": [html.escape(_shortened(event["text"])) for event in shown],
            "customdata": [event["step"] for event in shown],
            "marker": {"symbol": MARKS[kind][0], "size": 9, "color": "--ink"},
            "hovertemplate": "step %{customdata:,}: %{text}<extra></extra>",
        }
        for kind, listed in kinds.items()
        if (shown := evenly(listed, MAX_MARKS))
    ]  # fmt: skip


def evenly(items: Sequence[Any], most: int) -> list[Any]:
    """All of them, or so many at even distances."""
    return list(items) if len(items) <= most else [items[place * len(items) // most] for place in range(most)]


def _shortened(text: str, letters: int = 120) -> str:
    return text if len(text) <= letters else text[: letters - 1] + "…"
