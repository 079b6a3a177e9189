"""What was gained and what was lost: held-out loss and benchmarks against step 0, evaluations against the backbone."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from megatron_synE.config.evaluation_results import ComparedMetric, EvaluationResults
from megatron_synE.reporting.record_shapes import is_number
from megatron_synE.reporting.records import Measurements, benchmark_values
from megatron_synE.reporting.run_files import RunData

Json = dict[str, Any]

LARGEST_EXPONENT = 709.0
"""The exponential of more is no double."""


def perplexity(loss: float) -> float:
    """exp(loss), at most the largest one that is a number."""
    return math.exp(min(loss, LARGEST_EXPONENT))


def heldout_rows(run: RunData, other: RunData | None) -> Json | None:
    """Held-out loss by component: the first measurement, the last one, and the other run's last one.

    None where nothing was measured. A component is `lower` or `higher` by its loss alone: no interval is known.
    """
    first, last = run.records.heldout.first, run.records.heldout.last
    if first is None or last is None:
        return None
    theirs = (other.records.heldout.last or {}).get("loss", {}) if other is not None else {}
    rows = []
    for name, loss in last["loss"].items():
        row = {"component": name, **_change(first["loss"].get(name), loss)}
        for when in ("first", "last"):
            row[f"perplexity_{when}"] = None if row[when] is None else perplexity(row[when])
        if is_number(theirs.get(name)) and is_number(loss):
            row |= {"theirs": theirs[name], "difference_to_theirs": loss - theirs[name]}
        rows.append(row)
    rows.sort(key=lambda row: math.inf if row["difference"] is None else row["difference"])
    return {
        "first_step": first["step"], "last_step": last["step"], "num_measurements": run.records.heldout.num_recorded,
        "mean": _change(first.get("mean_loss"), last.get("mean_loss")), "rows": rows,
        "has_theirs": any("theirs" in row for row in rows),
    }  # fmt: skip


def benchmark_rows(run: RunData, other: RunData | None = None) -> Json | None:
    """Benchmarks in training: the first measurement and the last one. None where there was none."""
    found: Measurements = run.records.benchmarks
    if found.first is None or found.last is None:
        return None
    before, after = benchmark_values(found.first), benchmark_values(found.last)
    theirs = benchmark_values(other.records.benchmarks.last or {}) if other is not None else {}
    rows = []
    for key, value in after.items():
        task, _, metric = key.rpartition(" ")
        row = {"task": task, "metric": metric, **_change(before.get(key), value)}
        row["num_items"] = found.last["benchmarks"][task].get("num_items")
        if is_number(theirs.get(key)) and is_number(value):
            row |= {"theirs": theirs[key], "difference_to_theirs": value - theirs[key]}
        rows.append(row)
    return {
        "first_step": found.first["step"], "last_step": found.last["step"], "num_measurements": found.num_recorded,
        "rows": rows, "has_theirs": any("theirs" in row for row in rows),
    }  # fmt: skip


def evaluation_tables(run: RunData, against: Sequence[EvaluationResults]) -> list[Json]:
    """One table for each finished evaluation, with the verdicts of its comparison where it has one.

    Args:
        against: evaluations to set beside those without a comparison of their own; the newest that has the task counts.
    """
    return [_evaluation_table(results, against) for results in sorted(run.evaluations, key=lambda one: one.date)]


def _evaluation_table(results: EvaluationResults, against: Sequence[EvaluationResults]) -> Json:
    compared: dict[tuple[str, str], ComparedMetric] = {}
    if results.comparison is not None:
        compared = {(row.task, row.metric): row for row in results.comparison.metrics}
    rows = []
    for task in results.tasks.values():
        for metric in task.metrics:
            row: Json = {
                "task": task.task, "metric": metric.label, "shots": task.num_fewshot, "num_items": task.num_items,
                "value": metric.value, "stderr": metric.stderr, "higher_is_better": metric.higher_is_better,
                "is_group": bool(task.subtasks),
            }  # fmt: skip
            found = compared.get((task.task, metric.label))
            if found is not None:
                row |= {
                    "theirs": found.theirs, "difference": found.difference, "low": found.low, "high": found.high,
                    "verdict": found.verdict,
                }  # fmt: skip
            elif results.comparison is None and (theirs := _value_of(against, task.task, metric.label)) is not None:
                row |= {"theirs": theirs, "difference": metric.value - theirs}
            rows.append(row)
    comparison = results.comparison
    return {
        "folder": str(results.folder), "model": results.model, "date": results.date.isoformat(),
        "against": comparison.against if comparison is not None else ", ".join(str(one.folder) for one in against),
        "has_intervals": comparison is not None,
        "not_compared": dict(comparison.not_compared) if comparison is not None else {},
        "rows": rows, "verdicts": verdict_counts(rows), "manifest": _hashes(results.manifest or {}),
    }  # fmt: skip


def verdict_counts(rows: Sequence[Mapping[str, Any]]) -> Json:
    """How many rows were gained, lost and unclear; empty where nothing was judged."""
    judged = [row["verdict"] for row in rows if "verdict" in row]
    return {verdict: judged.count(verdict) for verdict in ("gained", "lost", "unclear")} if judged else {}


def _value_of(evaluations: Sequence[EvaluationResults], task: str, label: str) -> float | None:
    for results in sorted(evaluations, key=lambda one: one.date, reverse=True):
        for metric in results.tasks[task].metrics if task in results.tasks else ():
            if metric.label == label:
                return metric.value
    return None


def _hashes(manifest: Mapping[str, Any]) -> Json:
    """The manifest's short values, for a table: nothing that fills a page."""
    return {name: value for name, value in manifest.items() if isinstance(value, str | int | float) and value != ""}


def _change(first: Any, last: Any) -> Json:
    before, after = (value if is_number(value) else None for value in (first, last))
    return {
        "first": before, "last": after, "difference": None if before is None or after is None else after - before
    }  # fmt: skip
