"""The report of one run, as the JSON object that its page shows and carries."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

from megatron_synE.config.evaluation_results import EvaluationResults
from megatron_synE.reporting.consumption import Consumption, consumption
from megatron_synE.reporting.headline import headline
from megatron_synE.reporting.history import configuration, event_rows, reproduction, status
from megatron_synE.reporting.learning import benchmark_rows, evaluation_tables, heldout_rows
from megatron_synE.reporting.record_shapes import is_number
from megatron_synE.reporting.records import MAX_POINTS, MAX_POINTS_OF_COMPONENT
from megatron_synE.reporting.run_charts import run_charts
from megatron_synE.reporting.run_files import RunData

Json = dict[str, Any]

MAX_DECISIONS = 20
"""That the page shows with their numbers; the newest."""


def run_report(run: RunData, other: RunData | None = None, against: Sequence[EvaluationResults] = ()) -> Json:
    """All that the page of a run shows.

    Args:
        other: a run to compare with.
        against: evaluations to compare with, the backbone's for instance.
    """
    read, read_problem = _consumption(run)
    events = event_rows(run.records)
    num_decisions = sum(event["kind"] == "decision" for event in events)
    if num_decisions > MAX_DECISIONS:  # they have a section of their own
        events = [event for event in events if event["kind"] != "decision"]
    theirs = [*against, *(other.evaluations if other is not None else ())]
    report: Json = {
        "kind": "run",
        "title": run.name,
        "status": status(run),
        "run": run_facts(run, read),
        "against": None if other is None else {"name": other.name, **run_facts(other, None)},
        "heldout": heldout_rows(run, other),
        "benchmarks": benchmark_rows(run, other),
        "evaluations": evaluation_tables(run, theirs),
        "forgetting": run.records.events["forgetting"].records,
        "read": _read(run, read, read_problem),
        "decisions": _decisions(run, read),
        "events": events,
        "events_left_out": {kind: left.num_left_out for kind, left in run.records.events.items() if left.num_left_out},
        "configuration": configuration(run, other),
        "reproduction": reproduction(run),
        "sources": _sources(run),
        "charts": [chart.to_json() for chart in run_charts(run, other, read, events)],
    }
    report["headline"] = headline(report)
    return report


def run_facts(run: RunData, read: Consumption | None) -> Json:
    """The numbers that a run is known by."""
    records, start = run.records, run.start
    totals, length, state = records.totals, run.seq_length, run.state or {}
    num_samples = read.num_samples if read is not None else start.get("num_samples")
    tokens = records.last_tokens if records.num_records else state.get("consumed_tokens", 0)
    loss = records.loss
    facts = {
        "folder": str(run.folder),
        "step": records.last_step if records.num_records else state.get("step", 0),
        "last_step": start.get("last_step"),
        "tokens": tokens,
        "planned_tokens": None if num_samples is None or length is None else num_samples * length,
        "num_parameters": start.get("num_parameters"),
        "num_processes": start.get("num_processes"),
        "device": start.get("device"),
        "first_loss": None if loss.first is None else loss.first.value,
        "last_loss": None if loss.last is None else loss.last.value,
        "num_steps_logged": totals.num_logged,
        "num_steps_skipped": totals.num_skipped,
        "step_seconds": totals.seconds,
        "data_seconds": totals.data_seconds,
        "tokens_per_second": totals.num_tokens / totals.seconds if totals.seconds else None,
        "mean_mfu": totals.mfu_seconds / totals.seconds if totals.mfu_seconds else None,
        "peak_memory_gib": totals.peak_memory_gib or None,
        "num_checkpoints": records.num_checkpoints,
        "checkpoint_seconds": records.checkpoint_seconds,
        "first_time": records.first_time,
        "last_time": records.last_time,
    }
    return {name: None if isinstance(value, float) and not is_number(value) else value for name, value in facts.items()}


def _consumption(run: RunData) -> tuple[Consumption | None, str]:
    if run.state is None:
        return None, run.state_problem
    try:
        return consumption(run), ""
    except ValueError as error:
        return None, str(error)


def _read(run: RunData, read: Consumption | None, problem: str) -> Json:
    if read is None:
        return {"problem": problem, "rows": [], "stages": []}
    assert run.state is not None
    return {
        "problem": "",
        "step": run.state.get("step"),
        "consumed_tokens": read.consumed_samples * read.seq_length,
        "planned_tokens": read.planned_tokens,
        "seq_length": read.seq_length,
        "passed_over_samples": read.passed_over_samples,
        "documents_problem": read.documents_problem,
        "rows": [dataclasses.asdict(component) for component in read.components],
        "stages": [dataclasses.asdict(stage) for stage in read.stages],
    }


def _decisions(run: RunData, read: Consumption | None) -> Json:
    """The newest decisions with what they were made of."""
    found = [] if read is None else [dataclasses.asdict(decision) for decision in read.state.decisions]
    saved = {(decision["at_tokens"], decision["moves"]) for decision in found}
    recorded = run.records.events["decision"]
    found += [one for one in recorded.records if (one["at_tokens"], one.get("moves", "topics")) not in saved]
    rows = []
    for decision in found[-MAX_DECISIONS:]:
        changes = {name: decision["inputs"].get(name, {}) for name in ("change", "delta", "factor")}
        topics = [
            {"component": name, "before": before, "after": decision["shares_after"].get(name),
             "perplexity": decision["perplexity"].get(name),
             **{kind: values.get(name) for kind, values in changes.items()}}
            for name, before in decision["shares_before"].items()
        ]  # fmt: skip
        moves = decision.get("moves", "topics")
        rows.append({"tokens": decision["at_tokens"], "changed": decision["changed"], "moves": moves, "topics": topics})
    return {"num_decisions": max(len(found), recorded.num_recorded), "rows": rows}


def _sources(run: RunData) -> Json:
    """Where the numbers come from, and what was left out of them."""
    records = run.records
    return {
        "metrics_file": None if run.metrics_file is None else str(run.metrics_file),
        "num_records": records.num_records,
        "num_damaged": records.num_damaged,
        "checkpoints": None if run.checkpoints is None else str(run.checkpoints),
        "state_problem": run.state_problem,
        "is_thinned": records.is_thinned,
        "max_points": MAX_POINTS,
        "max_points_of_component": MAX_POINTS_OF_COMPONENT,
        "num_missing": {name: curve.num_missing for name, curve in records.steps.items() if curve.num_missing},
    }
