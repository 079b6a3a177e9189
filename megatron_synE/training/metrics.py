"""Where a run's numbers go: a progress line, metrics.jsonl and TensorBoard. Only the main process writes."""

from __future__ import annotations

import json
import math
import os
import sys
import time
from pathlib import Path
from typing import Any

QUIET_INTERVAL_SECONDS = 15.0


class MetricsWriter:
    """One record for each logged step, evaluation or decision.

    `metrics.jsonl` has one JSON object per line with `kind` ("step", "evaluation", "decision") and `step`, the number
    of optimizer steps done. When a run resumes at an earlier step than the file's last line, the lines after it are
    dropped first, so that each step stands there once.
    """

    def __init__(self, directory: Path | None, *, resumed_step: int, tensorboard: bool) -> None:
        self._file = None
        self._tensorboard: Any = None
        if directory is None:
            return
        directory.mkdir(parents=True, exist_ok=True)
        path = directory / "metrics.jsonl"
        _drop_after(path, resumed_step)
        self._file = open(path, "a", encoding="utf-8")  # noqa: SIM115 - closed by close()
        if tensorboard:
            from torch.utils.tensorboard import SummaryWriter

            self._tensorboard = SummaryWriter(str(directory / "tensorboard"), purge_step=resumed_step + 1)

    def write(self, kind: str, step: int, values: dict[str, Any]) -> None:
        """Append a record; numbers in it, also one level down, become TensorBoard curves `kind/name`."""
        if self._file is not None:
            record = {"kind": kind, "step": step, **_finite(values)}
            self._file.write(json.dumps(record, ensure_ascii=False) + "\n")
            self._file.flush()
        if self._tensorboard is not None:
            for name, value in _flat(values):
                if math.isfinite(value):
                    self._tensorboard.add_scalar(f"{kind}/{name}", value, step)

    def close(self) -> None:
        """Flush and close the files."""
        if self._file is not None:
            self._file.close()
        if self._tensorboard is not None:
            self._tensorboard.close()


class ProgressLine:
    """A live line on a terminal; elsewhere one plain line now and then, so that a log file stays readable."""

    def __init__(self, *, first_step: int, last_step: int, show: bool) -> None:
        self._show = show
        self._last_step = last_step
        self._last_print = -math.inf
        self._progress: Any = None
        if show and sys.stderr.isatty():
            from rich.console import Console
            from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
            from rich.table import Column

            # On a narrow terminal the text is cut at its end; count and remaining time stay whole.
            self._progress = Progress(
                MofNCompleteColumn(table_column=Column(no_wrap=True, min_width=2 * len(str(last_step)) + 1)),
                BarColumn(bar_width=10),
                TimeRemainingColumn(table_column=Column(no_wrap=True, min_width=7)),
                TextColumn("{task.description}", table_column=Column(no_wrap=True, overflow="ellipsis", ratio=1)),
                console=Console(file=sys.stderr),
                expand=True,
            )
            self._progress.start()
            self._task = self._progress.add_task("", total=last_step, completed=first_step)

    def step(self, step: int, text: str) -> None:
        """Show the state after `step` steps."""
        if self._progress is not None:
            self._progress.update(self._task, completed=step, description=text)
        elif self._show and (time.monotonic() - self._last_print > QUIET_INTERVAL_SECONDS or step == self._last_step):
            self._last_print = time.monotonic()
            print(f"step {step}/{self._last_step}  {text}", flush=True)

    def note(self, text: str) -> None:
        """A line that stays."""
        if self._progress is not None:
            self._progress.console.print(text, markup=False, highlight=False)
        elif self._show:
            print(text, flush=True)

    def close(self) -> None:
        """Give the terminal back."""
        if self._progress is not None:
            self._progress.stop()


def _drop_after(path: Path, step: int) -> None:
    if not path.exists():
        return
    kept = [line for line in path.read_text(encoding="utf-8").splitlines() if _step_of(line) <= step]
    aside = path.with_suffix(".jsonl.tmp")
    with open(aside, "w", encoding="utf-8") as file:
        file.writelines(line + "\n" for line in kept)
        file.flush()
        os.fsync(file.fileno())
    aside.replace(path)


def _step_of(line: str) -> float:
    """The record's step; infinite for a line that a killed process left unfinished."""
    try:
        return json.loads(line)["step"]
    except (json.JSONDecodeError, KeyError, TypeError):
        return math.inf


def _finite(value: Any) -> Any:
    """JSON has no nan: null stands for it."""
    if isinstance(value, dict):
        return {name: _finite(item) for name, item in value.items()}
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def _flat(values: dict[str, Any], prefix: str = "") -> list[tuple[str, float]]:
    flat = []
    for name, value in values.items():
        if isinstance(value, dict):
            flat += _flat(value, f"{prefix}{name}/")
        elif isinstance(value, int | float) and not isinstance(value, bool):
            flat.append((prefix + name, float(value)))
    return flat
