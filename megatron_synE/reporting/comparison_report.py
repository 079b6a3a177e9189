"""Several runs in one report, as the JSON object that its page shows and carries."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from megatron_synE.reporting.charts import Chart, ChartList, line, palette, simple_chart
from megatron_synE.reporting.curves import ThinnedCurve
from megatron_synE.reporting.history import differences, status
from megatron_synE.reporting.records import MAX_POINTS, MAX_POINTS_OF_COMPONENT, benchmark_values
from megatron_synE.reporting.run_files import RunData
from megatron_synE.reporting.run_report import run_facts

Json = dict[str, Any]


def comparison_report(runs: Sequence[RunData]) -> Json:
    """All that the page of several runs shows."""
    names = run_names(runs)
    return {
        "kind": "comparison",
        "title": " · ".join(names),
        "runs": [
            {"name": name, "status": status(run), **run_facts(run, None), "heldout_mean": _last_mean(run),
             "num_damaged": run.records.num_damaged}
            for name, run in zip(names, runs, strict=True)
        ],
        "heldout": _table([_last_heldout(run) for run in runs]),
        "benchmarks": _table([_last_benchmarks(run) for run in runs]),
        "evaluations": _table([_evaluations(run) for run in runs]),
        "differences": differences([run.config for run in runs]),
        "is_thinned": any(run.records.is_thinned for run in runs),
        "max_points": MAX_POINTS,
        "max_points_of_component": MAX_POINTS_OF_COMPONENT,
        "charts": [chart.to_json() for chart in _charts(names, runs)],
    }  # fmt: skip


def run_names(runs: Sequence[RunData]) -> list[str]:
    """The folders' names; where two are the same, with as many of their parents as tell them apart."""
    parts = [run.folder.resolve().parts[1:] or ("/",) for run in runs]
    for length in range(1, max(map(len, parts)) + 1):
        names = ["/".join(part[-length:]) for part in parts]
        if len(set(names)) == len(names):
            return names
    return [f"{name} ({number})" for number, name in enumerate(("/".join(part) for part in parts), 1)]


def _table(values: Sequence[dict[str, float]]) -> list[Json]:
    """A row for each name that any run has, with each run's value."""
    names = dict.fromkeys(name for found in values for name in found)
    return [{"name": name, "values": [found.get(name) for found in values]} for name in names]


def _last_heldout(run: RunData) -> dict[str, float]:
    return dict((run.records.heldout.last or {}).get("loss") or {})


def _last_mean(run: RunData) -> float | None:
    return (run.records.heldout.last or {}).get("mean_loss")


def _last_benchmarks(run: RunData) -> dict[str, float]:
    return benchmark_values(run.records.benchmarks.last or {})


def _evaluations(run: RunData) -> dict[str, float]:
    """`task metric` → score; of several evaluations the newest that has it."""
    return {
        f"{task.task} {metric.label}": metric.value
        for results in sorted(run.evaluations, key=lambda one: one.date)
        for task in results.tasks.values()
        for metric in task.metrics
    }


def _charts(names: Sequence[str], runs: Sequence[RunData]) -> list[Chart]:
    found, colour_of = ChartList(), palette(names)

    def add(name: str, title: str, note: str, unit: str, curve_of: Callable[[RunData], ThinnedCurve | None]) -> None:
        curves = [(label, curve_of(run)) for label, run in zip(names, runs, strict=True)]
        data = [line(label, curve, colour_of[label]) for label, curve in curves if curve is not None]
        found.add(simple_chart(name, title, note, data, unit))

    add("loss", "Training loss", "Of each logged step.", "loss", lambda run: run.records.loss)
    add(
        "held-out mean", "Held-out loss", "Mean over all held-out tokens of the run itself.", "loss",
        lambda run: run.records.heldout_means.get("mean_loss"),
    )  # fmt: skip
    for component in dict.fromkeys(name for run in runs for name in run.records.heldout.curves):
        if sum(component in run.records.heldout.curves for run in runs) > 1:
            add(
                f"held-out {component}", f"Held-out loss of {component}", "On documents that are never trained on.",
                "loss", lambda run, component=component: run.records.heldout.curves.get(component),  # type: ignore[misc]
            )  # fmt: skip
    for key in dict.fromkeys(name for run in runs for name in run.records.benchmarks.curves):
        add(
            f"benchmark {key}", key, "Scored by log-likelihood during the run.", "score",
            lambda run, key=key: run.records.benchmarks.curves.get(key),  # type: ignore[misc]
        )  # fmt: skip
    for field, title, unit in (
        ("learning_rate", "Learning rate", "learning rate"), ("grad_norm", "Gradient norm", "norm"),
        ("tokens_per_second", "Throughput", "tokens/s"), ("peak_memory_gib", "Memory", "GiB"),
    ):  # fmt: skip
        add(field, title, "Of each logged step.", unit, lambda run, field=field: run.records.steps[field])  # type: ignore[misc]
    return found.charts
