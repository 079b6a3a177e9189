"""The runner of `make gpu` with commands that end in every way, and its summary."""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from gpu import runner, summary
from gpu.runner import SKIPPED, Stage, read_records, run_stages

PRINT_THEN_WAIT = "import time; print('{\"a\": 1}', flush=True); print('text', flush=True); time.sleep(60)"


def run(tmp_path: Path, *stages: Stage) -> dict[str, dict[str, Any]]:
    return run_stages(stages, tmp_path, about={"commit": "abc"}, environment=os.environ, cwd=tmp_path)


def stage(name: str, code: str, limit_seconds: float = 60) -> Stage:
    return Stage(name, (sys.executable, "-c", code), limit_seconds)


def test_each_end_is_recorded_and_the_next_stage_goes_on(tmp_path: Path) -> None:
    records = run(
        tmp_path,
        stage("slow", PRINT_THEN_WAIT, limit_seconds=2),
        stage("broken", "print('{\"half\": 2}'); raise SystemExit('no such kernel')"),
        stage("absent", f"print('no such card'); raise SystemExit({SKIPPED})"),
        stage("good", "print('{\"a\": 1}'); print('{not json'); print('[1]'); print('{\"b\": {\"c\": 2}}')"),
    )
    assert {name: record["status"] for name, record in records.items()} == {
        "slow": "out of time", "broken": "failed", "absent": "skipped", "good": "passed",
    }  # fmt: skip
    assert records["slow"]["figures"] == {"a": 1}
    assert records["broken"]["figures"] == {"half": 2} and records["broken"]["reason"][-1] == "no such kernel"
    assert records["absent"]["reason"] == ["no such card"]
    assert records["good"]["figures"] == {"a": 1, "b": {"c": 2}} and "reason" not in records["good"]
    assert read_records(tmp_path) == records
    assert records["good"]["command"].startswith("python -c "), "no path of the machine that it ran on"
    assert all(record["commit"] == "abc" for record in records.values())
    assert (tmp_path / "slow.log").read_text() == '{"a": 1}\ntext\n'


def test_a_figure_is_on_disk_before_the_stage_ends(tmp_path: Path) -> None:
    code = (
        "import json, pathlib, time\n"
        "print('{\"early\": 1}', flush=True)\n"
        "path = pathlib.Path('watched.json')\n"
        "while json.loads(path.read_text())['figures'] != {'early': 1}: time.sleep(0.01)\n"
        "print(json.loads(path.read_text())['status'])"
    )
    record = run(tmp_path, stage("watched", code))["watched"]
    assert record["status"] == "passed", record
    assert (tmp_path / "watched.log").read_text().splitlines()[-1] == "running"


def test_a_stage_out_of_time_leaves_no_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runner, "KILL_AFTER_SECONDS", 0.5)
    child = "import os, time; open('pid', 'w').write(str(os.getpid())); time.sleep(60)"
    deaf = "import signal, subprocess, sys, time; signal.signal(15, signal.SIG_IGN)\n"
    code = f"{deaf}subprocess.Popen([sys.executable, '-c', {child!r}]); time.sleep(60)"
    record = run(tmp_path, stage("deaf", code, limit_seconds=5))["deaf"]
    assert record["status"] == "out of time"
    pid = int((tmp_path / "pid").read_text())
    deadline = time.monotonic() + 60
    while is_running(pid):
        assert time.monotonic() < deadline, "the child outlives its stage"
        time.sleep(0.05)


def is_running(pid: int) -> bool:
    """A killed child whose parent died first is init's; where init does not reap, it stays as a zombie."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def test_every_bar_is_unrun_without_records() -> None:
    lines = summary.table({})
    assert sum(line.endswith("unrun") for line in lines) == len(summary.BARS)


def record(figures: dict[str, Any], status: str = "passed") -> dict[str, Any]:
    return {"status": status, "seconds": 1.0, "figures": figures}


def verdicts(records: dict[str, dict[str, Any]]) -> dict[str, str]:
    lines = summary.table(records)[-len(summary.BARS) :]
    return {bar.claim: line.split()[-1] for bar, line in zip(summary.BARS, lines, strict=True)}


def test_bars_are_held_against_the_cases_that_they_name() -> None:
    bf16 = {**summary.BF16, "tokens_per_s": 1000, "share_of_gemm_rate": 0.61, "first_loss": 12.0}
    records = {
        "kernel_tests": record({"passed": 9, "failed": [], "skipped": 1}),
        "nccl_tests": record({"passed": 3, "failed": ["test_x"], "skipped": 0}, "failed"),
        "kernels": record({
            "copy_gb_per_s": 3000,
            "rope 4096": {"hidden": 4096, "share_of_copy_rate": 0.9},
            "swiglu 4096": {"hidden": 4096, "share_of_copy_rate": 0.86},
            "rope 8192": {"hidden": 8192, "share_of_copy_rate": 0.5},
        }),
        "step": record({
            "a": bf16,
            "b": {**bf16, "recompute": "full", "tokens_per_s": 800, "share_of_gemm_rate": 0.5},
            "c": {**bf16, "precision": "fp8", "tokens_per_s": 1400, "first_loss": 9.0},
            "d": {**bf16, "contender": "hf_eager", "tokens_per_s": 500, "first_loss": 12.05},
            "e": {**bf16, "contender": "hf_compile", "error": "OutOfMemoryError"},
        }, "out of time"),
        "whole_8b": record({"a": {**summary.PUBLISHED_SETTING, "tokens_per_s": 10471}}),
        "run": record({"resumed_as_uninterrupted": False}),
    }  # fmt: skip
    del records["step"]["figures"]["e"]["tokens_per_s"]
    found = list(verdicts(records).values())
    assert "    e: OutOfMemoryError" in summary.table(records)
    assert found == [
        "met", "MISSED", "met", "MISSED", "MISSED", "met", "met", "unrun", "met", "met", "unrun", "unrun",
        "met", "MISSED",
    ]  # fmt: skip


def test_tests_that_ran_out_of_time_do_not_hold() -> None:
    records = {"kernel_tests": record({"passed": 5, "failed": [], "skipped": 0}, "out of time")}
    assert verdicts(records)[summary.BARS[0].claim] == "MISSED"
    records = {"kernel_tests": record({"passed": 0, "failed": [], "skipped": 7})}
    assert verdicts(records)[summary.BARS[0].claim] == "unrun"


def test_records_of_other_files_are_left_alone(tmp_path: Path) -> None:
    (tmp_path / "other.json").write_text(json.dumps({"figures": 1}))
    assert read_records(tmp_path) == {}
