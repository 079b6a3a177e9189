"""Where a run's numbers go: metrics.jsonl, and the curves made of it. Only the main process writes."""

from __future__ import annotations

import contextlib
import json
import math
import os
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import IO, Any, Literal

from megatron_synE.training.curves import Curves

METRICS_FILE = "metrics.jsonl"

NO_CURVES = frozenset({"start", "stop"})
"""Kinds of records whose numbers are no curve over steps."""

Keeps = Callable[[dict[str, Any]], bool]
"""Whether a record that is there stands for what the run has done."""


class MetricsWriter:
    """One record for each logged step, evaluation, decision, checkpoint, incident, start, stop, resume or changed
    configuration.

    `metrics.jsonl` has one JSON object per line with `kind`, `step` (optimizer steps done) and `time` (seconds since
    1970). When a run goes on from a checkpoint, what the file says beyond it is dropped first, so that everything
    stands there once. A line that cannot be read is moved to `metrics.jsonl.damaged`.

    Args:
        directory: None writes nothing.
        resumed_step: steps done when it starts.
        curves: what else gets the numbers.
        keeps: of the records that are there; by default those up to `resumed_step`.

    Raises:
        OSError: the folder cannot be written to; names it.
    """

    def __init__(
        self, directory: Path | None, *, resumed_step: int, curves: Sequence[Curves] = (), keeps: Keeps | None = None
    ) -> None:
        self._directory, self._curves = directory, curves
        self._file: IO[str] | None = None
        self.num_damaged = 0
        """Lines that were moved aside."""
        self.rewind(resumed_step, keeps or (lambda record: record["step"] <= resumed_step))

    def rewind(self, step: int, keeps: Keeps) -> None:
        """Go on after `step`; drop the records that do not hold any more."""
        self._close_file()
        if self._directory is None:
            return
        with self._explained():
            self._directory.mkdir(parents=True, exist_ok=True)
            path = self._directory / METRICS_FILE
            self.num_damaged += _keep_only(path, keeps)
            self._file = open(path, "a", encoding="utf-8")  # noqa: SIM115 - closed by close()
            for curves in self._curves:
                curves.rewind(step)

    def write(self, kind: str, step: int, values: dict[str, Any]) -> None:
        """Append a record; finite numbers in it, also one level down, become curves `kind/name`."""
        if self._file is None:
            return
        record = {"kind": kind, "step": step, "time": round(time.time(), 3), **_finite(values)}
        with self._explained():
            self._file.write(json.dumps(record, ensure_ascii=False) + "\n")
            self._file.flush()
            if kind in NO_CURVES:
                return
            scalars = {f"{kind}/{name}": value for name, value in _flat(values) if math.isfinite(value)}
            for curves in self._curves:
                curves.scalars(step, scalars)

    def text(self, name: str, step: int, text: str) -> None:
        """A text for those curves that can show one."""
        if self._file is not None:
            for curves in self._curves:
                curves.text(name, step, text)

    def close(self, *, failed: bool = False) -> None:
        """Flush and close all; `failed` where an error ends the run."""
        if self._file is not None:
            self._close_file()
            for curves in self._curves:
                curves.close(failed=failed)

    def _close_file(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None

    @contextlib.contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise OSError(
                f"logging.directory: {self._directory} cannot be written ({error}); make room or choose another folder"
            ) from error


def _keep_only(path: Path, keeps: Keeps) -> int:
    """Leave the records that hold, in their order; returns the number of damaged lines that were moved aside.

    What follows the last line's end is what a killed process was writing, and is dropped.
    """
    if not path.exists():
        return 0
    kept, damaged = [], []
    for line in path.read_bytes().split(b"\n")[:-1]:
        try:
            record = json.loads(line)
            record["step"] + 0, record["kind"] + ""
        except (ValueError, KeyError, TypeError):  # a UnicodeDecodeError is a ValueError
            damaged.append(line)
            continue
        if keeps(record):
            kept.append(line)
    if damaged:
        _write_lines(path.with_name(path.name + ".damaged"), damaged, "ab")
    aside = path.with_name(path.name + ".tmp")
    _write_lines(aside, kept, "wb")
    aside.replace(path)
    return len(damaged)


def _write_lines(path: Path, lines: Sequence[bytes], mode: Literal["ab", "wb"]) -> None:
    with open(path, mode) as file:
        file.writelines(line + b"\n" for line in lines)
        file.flush()
        os.fsync(file.fileno())


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
