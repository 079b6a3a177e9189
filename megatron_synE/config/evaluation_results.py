"""A finished evaluation: a folder in lm-evaluation-harness's own format, with what this project adds.

| file | what is in it |
| --- | --- |
| `results_<UTC time>.json` | the harness's results: per task its metrics, `"acc,none"` and `"acc_stderr,none"` |
| `samples_<task>_<UTC time>.jsonl` | one JSON object per item and filter: document, requests, answers, metrics |
| `manifest.json` | what determined the results: hashes of data, templates, model and code, BOS policy, first prompts |
| `comparison.json` | where another result was given to compare with: paired differences |

The last two are this project's; a folder that the harness itself has written is read as well. Nothing here needs more
than the standard library.
"""

from __future__ import annotations

import json
import reprlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from megatron_synE.config.json_fields import JsonFields, is_finite

MANIFEST_FILE = "manifest.json"
COMPARISON_FILE = "comparison.json"
JOURNAL_FILE = "journal.jsonl"
"""Answered requests of an evaluation that is not finished."""
VERDICTS = ("gained", "lost", "unclear")
NO_FILTER = "none"

_REMEDY = "restore it, or evaluate again"


@dataclass(frozen=True)
class Metric:
    """One figure of a task."""

    name: str
    """As the task names it: acc, acc_norm, acc_bytes, exact_match, pass_at_1."""
    filter: str
    """Through which filter of the task the answers went; `none` where it has none."""
    value: float
    stderr: float | None
    """Standard error of the mean over the items; None where it has none."""
    higher_is_better: bool

    @property
    def label(self) -> str:
        """The name, with the filter where there is one: `exact_match,strict-match`."""
        return self.name if self.filter == NO_FILTER else f"{self.name},{self.filter}"


@dataclass(frozen=True)
class TaskResult:
    """What a model scored on one task or group of tasks."""

    task: str
    alias: str
    """For tables; the task's name where it has no other."""
    metrics: tuple[Metric, ...]
    num_items: int
    """Items that were evaluated."""
    num_fewshot: int
    """Worked examples before each question."""
    subtasks: tuple[str, ...] = ()
    """Of a group."""

    def metric(self, name: str, filter_name: str = NO_FILTER) -> Metric:
        """One metric by name.

        Raises:
            ValueError: the task has no such metric.
        """
        for metric in self.metrics:
            if (metric.name, metric.filter) == (name, filter_name):
                return metric
        raise ValueError(f"{self.task}: no metric {name}; it has {', '.join(metric.label for metric in self.metrics)}")


@dataclass(frozen=True)
class Sample:
    """One item of a task, as a model answered it, through one filter."""

    task: str
    doc_id: int
    """Its place among the task's items."""
    doc_hash: str
    """Of the item's content: equal items of two evaluations have equal ones."""
    filter: str
    metrics: Mapping[str, float]
    """Per metric name what this item scored."""
    content: Mapping[str, Any]
    """All that the harness wrote: doc, target, arguments, resps, filtered_resps."""


@dataclass(frozen=True)
class ComparedMetric:
    """A metric of one task against that of another evaluation on the same items."""

    task: str
    metric: str
    """With its filter where there is one, as `Metric.label`."""
    ours: float
    theirs: float
    difference: float
    """ours − theirs."""
    low: float
    """Lower end of the 95 % interval of the difference."""
    high: float
    num_items: int
    verdict: str
    """gained or lost where the interval has no 0 in it, by the metric's direction; else unclear."""


@dataclass(frozen=True)
class Comparison:
    """This evaluation against another one."""

    against: str
    """The other one's folder, as it was given."""
    metrics: tuple[ComparedMetric, ...]
    not_compared: Mapping[str, str]
    """Per task that only one has, or has with other items: why it has no row."""


@dataclass(frozen=True)
class EvaluationResults:
    """A finished evaluation."""

    folder: Path
    date: datetime
    """When it began, UTC."""
    tasks: Mapping[str, TaskResult]
    """In the harness's order."""
    model: str
    """What was evaluated, in words; empty where nothing says it."""
    content: Mapping[str, Any]
    """All of the harness's results file."""
    manifest: Mapping[str, Any] | None
    """None in a folder that the harness itself has written."""
    comparison: Comparison | None
    sample_files: Mapping[str, Path]
    """Per task the file of its samples, where there is one."""

    def task(self, name: str) -> TaskResult:
        """One task by name.

        Raises:
            ValueError: it was not evaluated.
        """
        if name not in self.tasks:
            raise ValueError(f"{self.folder}: has no task {name}, only {', '.join(self.tasks)}")
        return self.tasks[name]

    def samples(self, task: str) -> Iterator[Sample]:
        """The items of a task in their order, once per filter; read as they are asked for.

        Raises:
            ValueError: there are none, or a line is damaged.
        """
        if task not in self.sample_files:
            raise ValueError(f"{self.folder}: no samples_{task}_….jsonl; evaluate again with samples")
        return _read_samples(task, self.sample_files[task])


def read_evaluation(folder: str | Path) -> EvaluationResults:
    """The finished evaluation in a folder; where there are several results files, the last by its name.

    Raises:
        ValueError: there is none, it is not finished, or a file is damaged.
    """
    folder = Path(folder)
    path = _results_file(folder)
    fields = JsonFields.of_file(path, _REMEDY)
    stamp = path.stem.removeprefix("results_")
    return EvaluationResults(
        folder=folder,
        date=datetime.fromtimestamp(_number(fields, "date"), UTC),
        tasks={name: _task(fields, name) for name in fields.inner("results").content},
        model=_model(fields),
        content=fields.content,
        manifest=_manifest(folder),
        comparison=_comparison(folder),
        sample_files={
            file.stem.removeprefix("samples_").removesuffix(f"_{stamp}"): file
            for file in sorted(folder.glob(f"samples_*_{stamp}.jsonl"))
        },
    )


def is_finished(folder: str | Path) -> bool:
    """Whether there is a finished evaluation in a folder."""
    return any(Path(folder).glob("results_*.json"))


def _results_file(folder: Path) -> Path:
    if not folder.is_dir():
        raise ValueError(f"{folder}: no such folder; give the output folder of an evaluation")
    found = sorted(folder.glob("results_*.json"))
    if found:
        return found[-1]
    if (folder / JOURNAL_FILE).exists():
        raise ValueError(f"{folder}: this evaluation is not finished; start it again, and it goes on")
    inside = [str(path) for path in sorted(folder.glob("*")) if is_finished(path)]
    hint = f"give {' or '.join(inside[:3])}" if inside else "give the output folder of an evaluation"
    raise ValueError(f"{folder}: no results_….json in it; {hint}")


def _task(fields: JsonFields, name: str) -> TaskResult:
    row = fields.inner("results").inner(name)
    metrics = []
    for key in row.content:
        metric, comma, filter_name = key.partition(",")
        if not comma or metric.endswith("_stderr"):
            continue
        stderr = row.content.get(f"{metric}_stderr,{filter_name}")
        if stderr == "N/A":  # the harness's word for none
            stderr = None
        if stderr is not None and not is_finite(stderr):
            raise row.wrong(f"{metric}_stderr,{filter_name}", f"is {reprlib.repr(stderr)}, not a finite number")
        value, is_higher = _number(row, key), _is_higher_better(fields, name, metric)
        metrics.append(Metric(metric, filter_name, value, stderr, is_higher))
    subtasks = fields.content.get("group_subtasks", {}).get(name, [])
    return TaskResult(
        task=name,
        alias=str(row.content.get("alias", name)).lstrip(" -"),
        metrics=tuple(metrics),
        num_items=_num_items(fields, name, row),
        num_fewshot=fields.inner("n-shot").integer(name) if name in fields.content.get("n-shot", {}) else 0,
        subtasks=tuple(subtasks),
    )


def _num_items(fields: JsonFields, name: str, row: JsonFields) -> int:
    if name in fields.inner("n-samples").content:
        return fields.inner("n-samples").inner(name).integer("effective")
    return row.integer("sample_len") if row.has("sample_len") else 0  # a group


def _is_higher_better(fields: JsonFields, task: str, metric: str) -> bool:
    directions = fields.inner("higher_is_better")
    if task not in directions.content or not directions.inner(task).has(metric):
        return True  # the harness leaves it open where the subtasks of a group differ
    return directions.inner(task).flag(metric)


def _number(fields: JsonFields, name: str) -> float:
    value = fields.content.get(name)
    if not is_finite(value):
        raise fields.wrong(name, f"is {reprlib.repr(value)}, not a finite number")
    return float(value)  # type: ignore[arg-type]


def _model(fields: JsonFields) -> str:
    name = fields.content.get("model_name") or fields.content.get("config", {}).get("model")
    return name if isinstance(name, str) else ""


def _manifest(folder: Path) -> Mapping[str, Any] | None:
    path = folder / MANIFEST_FILE
    return JsonFields.of_file(path, _REMEDY).content if path.exists() else None


def _comparison(folder: Path) -> Comparison | None:
    path = folder / COMPARISON_FILE
    if not path.exists():
        return None
    fields = JsonFields.of_file(path, _REMEDY)
    return Comparison(
        against=fields.text("against"),
        metrics=tuple(_compared(row) for row in fields.inner_list("metrics")),
        not_compared=fields.texts_by_name("not_compared", lambda text: True, "a string"),
    )


def _compared(row: JsonFields) -> ComparedMetric:
    verdict = row.text("verdict")
    if verdict not in VERDICTS:
        raise row.wrong("verdict", f"is {reprlib.repr(verdict)}, not one of {', '.join(VERDICTS)}")
    return ComparedMetric(
        task=row.text("task"),
        metric=row.text("metric"),
        ours=_number(row, "ours"),
        theirs=_number(row, "theirs"),
        difference=_number(row, "difference"),
        low=_number(row, "low"),
        high=_number(row, "high"),
        num_items=row.integer("num_items", low=1),
        verdict=verdict,
    )


def _read_samples(task: str, path: Path) -> Iterator[Sample]:
    with open(path, encoding="utf-8") as file:
        for number, line in enumerate(file, start=1):
            try:
                content = json.loads(line)
            except (ValueError, RecursionError) as error:
                raise ValueError(f"{path}:{number}: damaged ({error}); {_REMEDY}") from None
            fields = JsonFields(content, f"{path}:{number}: ", _REMEDY)
            yield Sample(
                task=task,
                doc_id=fields.integer("doc_id"),
                doc_hash=fields.text("doc_hash"),
                filter=fields.text("filter"),
                metrics={
                    name: float(content[name]) for name in fields.texts("metrics") if _is_score(content.get(name))
                },
                content=content,
            )


def _is_score(value: Any) -> bool:
    """Whether an item's score is one number; metrics over all items at once (F1, perplexity) keep something else."""
    return isinstance(value, bool) or is_finite(value)
