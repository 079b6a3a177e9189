"""A written report, read back: the JSON in it, its tables, and whether every figure is that of the run's own files."""

from __future__ import annotations

import bisect
import json
import math
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

Json = dict[str, Any]
STEP_CHARTS = ("learning_rate", "grad_norm", "tokens_per_second", "mfu", "tflops_per_device", "peak_memory_gib",
               "global_batch_size")  # fmt: skip


class ReportPage(HTMLParser):
    """What stands in a page: `report`, the tables' numbers, the elements and the texts."""

    def __init__(self, page: bytes) -> None:
        super().__init__()
        self.elements: list[str] = []
        self.addresses: list[str] = []
        """That the page would fetch or lead to."""
        self.tables: dict[str, list[list[float | None]]] = {}
        """Table → rows → numbers of its cells; None for a cell of words."""
        self.headings: dict[str, list[str]] = {}
        """Table → what each row is headed."""
        self.words = ""
        self._open: list[str] = []
        self._table = ""
        self._embedded = ""
        self._is_embedded = self._is_heading = False
        self.feed(page.decode("utf-8"))
        self.report: Json = json.loads(self._embedded)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        self.elements.append(tag)
        self.addresses += [str(given[name]) for name in ("src", "href", "action", "data") if name in given]
        self._is_embedded = given.get("id") == "report"
        self._open.append(tag)
        if tag == "table":
            self._table = str(given["data-table"])
            self.tables[self._table], self.headings[self._table] = [], []
        elif tag == "tr":
            self.tables[self._table].append([])
        elif tag == "td":
            value = given.get("data-value")
            self.tables[self._table][-1].append(None if value is None else float(value))
        elif tag == "th" and given.get("scope") == "row":
            self.headings[self._table].append("")
            self._is_heading = True

    def handle_endtag(self, tag: str) -> None:
        self._is_embedded = self._is_heading = False

    def handle_data(self, data: str) -> None:
        if self._is_embedded:
            self._embedded += data
        elif self._open[-1:] not in (["script"], ["style"]):
            self.words += data
            if self._is_heading:
                self.headings[self._table][-1] += data

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)

    def chart(self, name: str) -> Json:
        """One chart by its name."""
        (found,) = (chart for chart in self.report["charts"] if chart["name"] == name)
        return found


def read_page(path: Path) -> ReportPage:
    """The page in a file."""
    return ReportPage(path.read_bytes())


def points(chart: Json) -> dict[str, list[tuple[float, float]]]:
    """Curve → its points, without the marks above the chart; a topic's share is `name (share)`."""
    found = {}
    for trace in chart["data"]:
        if trace["mode"] != "markers":
            share = " (share)" if trace.get("yaxis") == "y3" else ""
            found[trace["meta"]["name"] + share] = list(zip(trace["x"], trace["y"], strict=True))
    return found


def records_of(metrics_file: Path) -> list[Json]:
    """The records that are whole."""
    return [json.loads(line) for line in metrics_file.read_text(encoding="utf-8").splitlines() if line.endswith("}")]


def wrong_figures(page: ReportPage, records: list[Json], state: Json, ledger: list[Any]) -> list[str]:
    """Figures of a run's report that are not those of its metrics.jsonl, its checkpoint's state and its ledger.

    Args:
        ledger: of all samples that the checkpoint has consumed.
    """
    steps = [record for record in records if record["kind"] == "step"]
    evaluations = [record for record in records if record["kind"] == "evaluation"]
    found = _wrong_curves(page, steps, evaluations) + _wrong_mixtures(page, steps)
    found += _wrong_tables(page, evaluations, ledger)
    facts, last = page.report["run"], records[-1]
    expected = {
        "step": last["step"], "tokens": last["consumed_tokens"], "num_steps_logged": len(steps),
        "planned_tokens": state["stream"]["num_samples"] * state["stream"]["seq_length"],
        "last_loss": steps[-1]["loss"], "first_loss": steps[0]["loss"],
        "num_steps_skipped": sum(not record["updated"] for record in steps),
        "peak_memory_gib": max(record["peak_memory_gib"] for record in steps),
        "first_time": records[0]["time"], "last_time": last["time"],
        "num_checkpoints": sum(record["kind"] == "checkpoint" for record in records),
    }  # fmt: skip
    found += [f"{name}: {facts[name]}, not {value}" for name, value in expected.items() if facts[name] != value]
    seconds = math.fsum(record["step_seconds"] for record in steps)
    if not math.isclose(facts["step_seconds"], seconds):
        found.append(f"step_seconds: {facts['step_seconds']}, not {seconds}")
    tokens = sum(record["global_batch_size"] for record in steps) * state["stream"]["seq_length"]
    if not math.isclose(facts["tokens_per_second"], tokens / seconds):
        found.append(f"tokens_per_second: {facts['tokens_per_second']}, not {tokens / seconds}")
    kinds = {"start": ("start", "resume"), "decision": ("decision",), "incident": ("incident",),
             "stop": ("stop", "finish")}  # fmt: skip
    for kind, shown in kinds.items():
        expected_steps = [record["step"] for record in records if record["kind"] == kind]
        steps_shown = [row["step"] for row in page.report["events"] if row["kind"] in shown]
        if steps_shown != expected_steps:
            found.append(f"events {kind}: at steps {steps_shown}, not {expected_steps}")
    return found


def _wrong_curves(page: ReportPage, steps: list[Json], evaluations: list[Json]) -> list[str]:
    curves: dict[tuple[str, str], list[tuple[float, float]]] = {}

    def add(chart: str, curve: str, record: Json, value: float) -> None:
        curves.setdefault((chart, curve), []).append((record["consumed_tokens"], value))

    titles = {chart["name"]: chart["title"] for chart in page.report["charts"]}
    for record in steps:
        add("loss", "training", record, record["loss"])
        add("step seconds", "step", record, record["step_seconds"])
        add("step seconds", "waiting for data", record, record["data_seconds"])
        for name in STEP_CHARTS:
            if name in record and name in titles:
                add(name, titles[name], record, record[name])
        for component, loss in record["loss_by_component"].items():
            add("training loss by component", component, record, loss)
    for record in evaluations:
        if "mean_loss" in record:
            add("loss", "held-out, mean over tokens", record, record["mean_loss"])
        for component, loss in record["loss"].items():
            add("held-out loss", component, record, loss)
            source, _, topic = component.partition("/")
            if topic:
                add(f"topics of {source}", topic, record, record["perplexity"][component])
    found, shown = [], {chart: points(page.chart(chart)) for chart in titles}
    for (chart, curve), expected in curves.items():
        if shown.get(chart, {}).get(curve) != expected:
            found.append(f"chart {chart}: {curve} is not what was recorded")
    drawn = {(chart, curve) for chart, lines in shown.items() if chart != "mixture" for curve in lines}
    return found + [f"chart {chart}: {curve} is from nowhere" for chart, curve in drawn - set(curves)
                    if not curve.endswith("(share)")]  # fmt: skip


def _wrong_mixtures(page: ReportPage, steps: list[Json]) -> list[str]:
    """Shares that are drawn, against those that each step was read with."""
    found, drawn = [], points(page.chart("mixture"))
    for record, before in zip(steps, [0, *(record["consumed_tokens"] for record in steps)], strict=False):
        for component, share in record["shares"].items():
            if not math.isclose(_step_function(drawn.get(component, [(0, 0.0)]), before), share, abs_tol=1e-12):
                found.append(f"mixture: {component} at step {record['step']}")
            source, _, topic = component.partition("/")
            total = math.fsum(part for name, part in record["shares"].items() if name.startswith(f"{source}/"))
            if topic and total:
                curve = points(page.chart(f"topics of {source}"))[f"{topic} (share)"]
                if not math.isclose(_step_function(curve, before), share / total, rel_tol=1e-9):
                    found.append(f"share of {component} at step {record['step']}")
    return found


def _step_function(curve: list[tuple[float, float]], at: float) -> float:
    return curve[bisect.bisect_right([tokens for tokens, _ in curve], at) - 1][1]


def _wrong_tables(page: ReportPage, evaluations: list[Json], ledger: list[Any]) -> list[str]:
    found, report = [], page.report
    if evaluations:
        first, last = evaluations[0], evaluations[-1]
        expected = {
            name: [loss - before, before, loss, first["perplexity"][name], last["perplexity"][name]]
            for name, loss in last["loss"].items()
            for before in [first["loss"][name]]
        }
        shown = dict(zip(page.headings["heldout"], page.tables["heldout"][1:], strict=True))
        found += [f"held-out table: {name}" for name, row in expected.items() if shown[name] != row]
        steps = report["heldout"]["first_step"], report["heldout"]["last_step"]
        found += [] if steps == (first["step"], last["step"]) else [f"held-out table: steps {steps}"]
    shown = dict(zip(page.headings["read"], page.tables["read"][1:], strict=True))
    for entry in ledger:
        row = [entry.share, entry.tokens, entry.documents, entry.last_epoch, entry.repeated_tokens]
        if shown[entry.component][:5] != row:
            found.append(f"read: {entry.component} is {shown[entry.component]}, the ledger has {row}")
    return found if len(shown) == len(ledger) else [*found, f"read: {len(shown)} components"]
