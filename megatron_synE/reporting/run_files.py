"""What a run has left in its folders, found and read for a report."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from megatron_synE.config.evaluation_results import EvaluationResults, is_finished, read_evaluation
from megatron_synE.reporting.records import METRICS_FILE, RunRecords, read_records

ReadState = Callable[[Path], Mapping[str, Any]]
"""Reads state.json of the newest checkpoint in a folder; ValueError where there is none, or it is damaged."""


@dataclass(frozen=True)
class RunData:
    """Everything that is known of a run."""

    folder: Path
    """As it was given."""
    metrics_file: Path | None
    records: RunRecords
    checkpoints: Path | None
    """The folder of its checkpoints."""
    state: Mapping[str, Any] | None
    """state.json of the newest checkpoint."""
    state_problem: str
    """Why there is no state; empty where there is one."""
    evaluations: Sequence[EvaluationResults]

    @property
    def name(self) -> str:
        """For titles."""
        return self.folder.resolve().name

    @property
    def start(self) -> Mapping[str, Any]:
        """The record of the newest start; empty for a run of a version that kept none."""
        starts = self.records.events["start"].records
        return starts[-1] if starts else {}

    @property
    def config(self) -> Mapping[str, Any]:
        """The whole configuration, of the newest start or of the checkpoint; empty where nothing says it."""
        return self.start.get("config") or (self.state or {}).get("config") or {}

    @property
    def directory(self) -> Path:
        """Where the relative paths of the configuration begin; here, where nothing else says it."""
        written = self.start.get("directory")
        return Path(written) if isinstance(written, str) and Path(written).is_dir() else Path()

    @property
    def seq_length(self) -> int | None:
        """Tokens of a sample."""
        stream = (self.state or {}).get("stream") or {}
        return stream.get("seq_length") or self.start.get("seq_length")


def read_run(folder: str | Path, read_state: ReadState, evaluations: Iterable[str | Path] = ()) -> RunData:
    """A run by its folder: the one of its metrics.jsonl or of its checkpoints, or the one that holds these.

    Args:
        evaluations: folders of finished evaluations beside those that lie in `folder`.

    Raises:
        ValueError: there is no run, or more than one; an evaluation is not finished or damaged.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise ValueError(f"{folder}: no such folder; give a run's checkpoint.save or logging.directory")
    metrics_file = _metrics_file(folder)
    records = RunRecords() if metrics_file is None else read_records(metrics_file)
    run = RunData(folder, metrics_file, records, None, None, "", [])
    checkpoints = _checkpoints(run)
    if metrics_file is None and checkpoints is None:
        raise ValueError(f"{folder}: no {METRICS_FILE} and no checkpoint in it; give a run's logging.directory")
    state, problem = None, "no checkpoint was found"
    if checkpoints is not None:
        try:
            state, problem = read_state(checkpoints), ""
        except ValueError as error:
            problem = str(error)
    if state is not None and (problem := _foreign(run, state)):
        state, problem = None, f"{checkpoints} {problem}"
    found = {path.resolve(): path for path in [*_evaluations(folder), *map(Path, evaluations)]}
    results = [read_evaluation(path) for path in found.values()]
    return RunData(folder, metrics_file, records, checkpoints, state, problem, results)


def _metrics_file(folder: Path) -> Path | None:
    if (folder / METRICS_FILE).is_file():
        return folder / METRICS_FILE
    found = sorted(folder.glob(f"*/{METRICS_FILE}"))
    if len(found) > 1:
        raise ValueError(f"{folder}: holds several runs; give one of {', '.join(str(path.parent) for path in found)}")
    return found[0] if found else None


def _checkpoints(run: RunData) -> Path | None:
    """In the folder first: a run may have been moved, and another one lie where it was."""
    save = (run.config.get("checkpoint") or {}).get("save")
    named = None if save is None else Path(save)
    near = [run.folder, *([] if named is None else [run.folder / named.name])]
    near += sorted(path for path in run.folder.iterdir() if path.is_dir())
    if run.metrics_file is not None:
        near.append(run.metrics_file.parent)
    if named is not None:
        near.append(run.directory / named)
    return next((path for path in near if _has_checkpoints(path)), None)


def _foreign(run: RunData, state: Mapping[str, Any]) -> str:
    """Why a checkpoint is not this run's; empty where it is, as far as the records tell."""
    if not isinstance(state.get("stream"), dict):
        return "holds an imported model, not a run"
    ours = {entry["name"]: entry["identity"] for entry in run.start.get("components", ())}
    theirs = {entry["name"]: entry["identity"] for entry in state["stream"].get("components", ())}
    return "belongs to another run: its corpora are not those of the records" if ours and ours != theirs else ""


def _has_checkpoints(folder: Path) -> bool:
    return folder.is_dir() and ((folder / "latest").is_file() or any(folder.glob("step_*/state.json")))


def _evaluations(folder: Path) -> list[Path]:
    """Folders of finished evaluations, up to two levels down."""
    folders = {path.parent for depth in ("", "*/", "*/*/") for path in folder.glob(f"{depth}results_*.json")}
    return sorted(path for path in folders if is_finished(path))


def absolute_paths(data: Mapping[str, Any], directory: Path) -> dict[str, Any]:
    """The section `data` of a configuration with the paths of its corpora made absolute."""

    def resolved(path: str | None) -> str | None:
        return None if path is None else os.path.join(os.path.abspath(directory), path)

    sources = {name: {**source, "prefix": resolved(source["prefix"])} for name, source in data["sources"].items()}
    return {**data, "sources": sources, "cache_dir": resolved(data.get("cache_dir"))}
