"""metrics.jsonl as it may be found: very long, damaged, being written."""

from __future__ import annotations

import json
import pickle
import random
from pathlib import Path
from typing import Any

import pytest

from megatron_synE.reporting.page import embedded_json, render
from megatron_synE.reporting.records import MAX_EVENTS, MAX_POINTS, MAX_POINTS_OF_COMPONENT, read_records
from megatron_synE.reporting.run_files import read_run
from megatron_synE.reporting.run_report import run_report
from tests.helpers.recorded_runs import RecordedRun
from tests.helpers.report_page import ReportPage, points

NUM_STEPS, SPIKE_STEP, INTERVAL = 9_000, 2_345, 15
MAX_PAGE_BYTES, MAX_KEPT_BYTES = 9 << 20, 1 << 20


PLACE = {"step": 15, "time": 1.8e9, "consumed_tokens": 1920}
MORE_KINDS = b"".join(
    json.dumps({**PLACE, **record}).encode() + b"\n"
    for record in (
        {"kind": "benchmark", "benchmarks": {"sciq": {"acc": 0.5, "num_items": 3}}},
        {"kind": "forgetting", "what": "loss of book", "baseline": 1.0, "value": 2.0, "bound": 1.5, "reaction": "warn"},
        {"kind": "stop", "reason": "told"},
    )
)


def long_run(folder: Path, num_steps: int) -> Path:
    """Records of a run with 8 components, a decision every INTERVAL steps, and one spike."""
    names = [f"web/topic_{number}" for number in range(8)]
    with open(folder / "metrics.jsonl", "w", encoding="utf-8") as file:
        for step in range(1, num_steps + 1):
            place = {"step": step, "time": step, "consumed_samples": step, "consumed_tokens": 100 * step}
            loss = 99.0 if step == SPIKE_STEP else 2 + step % 7 / 10
            shares = {name: (step // INTERVAL + number) % 8 / 28 for number, name in enumerate(names)}
            if step % INTERVAL == 0:
                moved = {"perplexity": shares, "shares_before": shares, "shares_after": shares, "inputs": {}}
                decision = {"kind": "decision", **place, "at_tokens": 100 * step, "changed": True, **moved}
                file.write(json.dumps(decision) + "\n")
            record: dict[str, Any] = {"kind": "step", **place, "loss": loss, "grad_norm": loss, "shares": shares}
            record |= {"loss_by_component": {names[step % 8]: loss}, "step_seconds": 1.0, "tokens_per_second": 100.0}
            file.write(json.dumps(record) + "\n")
    return folder


def no_state(path: Path) -> dict[str, Any]:
    raise ValueError(f"{path}: no checkpoint")


def test_a_long_run_gives_a_page_of_bounded_size_in_bounded_memory(tmp_path: Path) -> None:
    run = read_run(long_run(tmp_path, NUM_STEPS), no_state)
    kept = len(pickle.dumps(run.records))
    page = render(run_report(run))
    assert len(page) < MAX_PAGE_BYTES and kept < MAX_KEPT_BYTES
    shown = ReportPage(page)
    loss = points(shown.chart("loss"))["training"]
    assert len(loss) <= MAX_POINTS + 2 and (100 * SPIKE_STEP, 99.0) in loss
    assert loss[0] == (100, 2.1) and loss[-1][0] == 100 * NUM_STEPS
    by_component = points(shown.chart("training loss by component"))
    assert all(len(curve) <= MAX_POINTS_OF_COMPONENT + 2 for curve in by_component.values())
    assert "Long curves are thinned" in shown.words
    assert f"of {NUM_STEPS // INTERVAL + 1:,} mixtures are drawn" in shown.words
    assert shown.report["events"] == [] and shown.report["decisions"]["num_decisions"] == NUM_STEPS // INTERVAL
    assert shown.report["run"]["step_seconds"] == NUM_STEPS and shown.report["run"]["tokens_per_second"] == 100
    assert len(run.records.events["decision"].records) == MAX_EVENTS


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> RecordedRun:
    return RecordedRun(tmp_path_factory.mktemp("recorded"))


@pytest.mark.parametrize("seed", range(40))
def test_flipped_bits_leave_a_page(recorded: RecordedRun, tmp_path: Path, seed: int) -> None:
    """Or one error; never a traceback of another kind."""
    chosen, content = random.Random(seed), bytearray(recorded.metrics_file.read_bytes() + MORE_KINDS)
    for _ in range(40):
        content[chosen.randrange(len(content))] ^= 1 << chosen.randrange(8)
    (tmp_path / "metrics.jsonl").write_bytes(content)
    try:
        embedded_json(run_report(read_run(tmp_path, no_state)))
    except ValueError as error:
        assert "\n" not in str(error)


def test_what_a_record_must_have(tmp_path: Path) -> None:
    place = {"step": 1, "consumed_tokens": 100}
    for record in (
        {"kind": "step", **place, "loss": 2.0}, {"kind": "evaluation", **place}, {"kind": "step", "step": 1},
        {"kind": "step", "step": "1", "consumed_tokens": 3}, {"kind": "decision", **place, "at_tokens": 3},
        {"kind": "of a later version", **place}, {"kind": "start", **place, "config": []},
    ):  # fmt: skip
        with open(tmp_path / "metrics.jsonl", "a") as file:
            file.write(json.dumps(record) + "\n")
    found = read_records(tmp_path / "metrics.jsonl")
    assert (found.num_records, found.num_damaged) == (2, 5)
    assert read_records(tmp_path / "none.jsonl").num_records == 0
