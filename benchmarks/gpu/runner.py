"""Runs commands one after another, each within its time, and writes what became of each at once.

A command prints its figures as JSON objects, one a line, as it finds them; what it has printed when it is stopped is
kept. It ends with 0, with SKIPPED where this machine cannot run it, or with any other status where it failed.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

SKIPPED = 77
"""Exit status of a command that this machine cannot run; its last line says why."""

KILL_AFTER_SECONDS = 5.0
REASON_LINES = 5


@dataclass(frozen=True)
class Stage:
    """One Python command and the time it may take."""

    name: str
    command: tuple[str, ...]
    limit_seconds: float


def run_stages(
    stages: Sequence[Stage], results: Path, *, about: Mapping[str, Any], environment: Mapping[str, str], cwd: Path
) -> dict[str, dict[str, Any]]:
    """Run every stage, whatever becomes of the others; returns the records by name."""
    results.mkdir(parents=True, exist_ok=True)
    return {stage.name: run_stage(stage, results, about=about, environment=environment, cwd=cwd) for stage in stages}


def run_stage(
    stage: Stage, results: Path, *, about: Mapping[str, Any], environment: Mapping[str, str], cwd: Path
) -> dict[str, Any]:
    """Run one stage; `results` gets NAME.log and NAME.json, which is written anew with each figure.

    Returns:
        The record: `about`, name, command, limit, status (passed, failed, skipped, out of time; "running" stands in
        the file of one that was cut off), seconds, figures, and the last lines where it did not pass.
    """
    record: dict[str, Any] = {
        **about, "stage": stage.name, "command": " ".join(["python", *stage.command[1:]]),
        "limit_seconds": stage.limit_seconds,
        "started": round(time.time(), 1), "status": "running", "figures": {},
    }  # fmt: skip
    path = results / f"{stage.name}.json"
    write_json(path, record)
    print(f"\n== {stage.name}: at most {stage.limit_seconds:g} s", flush=True)
    start = time.monotonic()
    lines: list[str] = []
    process = subprocess.Popen(
        stage.command, cwd=cwd, env=dict(environment), stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT, text=True, errors="replace", start_new_session=True,
    )  # fmt: skip
    assert process.stdout is not None
    arguments = (process.stdout, results / f"{stage.name}.log", lines, record, path)
    reader = threading.Thread(target=_read, args=arguments, daemon=True)
    reader.start()
    in_time = _wait(process, stage.limit_seconds)
    reader.join(KILL_AFTER_SECONDS)  # a child in a session of its own may keep the pipe open
    record["seconds"] = round(time.monotonic() - start, 1)
    record["status"] = _status(process.returncode) if in_time else "out of time"
    if record["status"] != "passed":
        record["reason"] = [line for line in lines if line.strip()][-REASON_LINES:]
    write_json(path, record)
    print(f"== {stage.name}: {record['status']} after {record['seconds']:g} s", flush=True)
    return record


def read_records(results: Path) -> dict[str, dict[str, Any]]:
    """The records of all stages that were ever run into this folder, by name, in the order of their last start."""
    found = [json.loads(path.read_text(encoding="utf-8")) for path in results.glob("*.json")]
    records = sorted((record for record in found if "stage" in record), key=lambda record: record["started"])
    return {record["stage"]: record for record in records}


def write_json(path: Path, value: Any) -> None:
    """Put the file there whole, or leave the one that is there."""
    aside = path.with_suffix(".partial")
    aside.write_text(json.dumps(value, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    os.replace(aside, path)


def _read(output: IO[str], log_path: Path, lines: list[str], record: dict[str, Any], path: Path) -> None:
    with open(log_path, "w", encoding="utf-8") as log:
        for line in output:
            print(line, end="", flush=True)
            log.write(line)
            log.flush()
            lines.append(line.rstrip())
            figures = _figures(line)
            if figures:
                record["figures"].update(figures)
                write_json(path, record)


def _figures(line: str) -> dict[str, Any]:
    if not line.startswith("{"):
        return {}
    try:
        value = json.loads(line)
    except json.JSONDecodeError:
        return {}
    return value if isinstance(value, dict) else {}


def _wait(process: subprocess.Popen[str], limit_seconds: float) -> bool:
    """Wait for the end, and end what the command has started; whether it ended by itself, in time."""
    try:
        process.wait(limit_seconds)
        return True
    except subprocess.TimeoutExpired:
        _signal(process, signal.SIGTERM)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(KILL_AFTER_SECONDS)
        return False
    finally:
        _signal(process, signal.SIGKILL)  # also children that it left behind: they hold the GPU's memory
        process.wait()


def _signal(process: subprocess.Popen[str], number: signal.Signals) -> None:
    """To the command's process group, which is its own."""
    try:
        os.killpg(process.pid, number)
    except ProcessLookupError:
        return


def _status(returncode: int) -> str:
    return {0: "passed", SKIPPED: "skipped"}.get(returncode, "failed")
