"""Finished evaluations, made by hand in lm-evaluation-harness's format."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

STAMP = "2026-11-21T20-00-00.000000"


def make_evaluation(
    folder: Path, scores: Mapping[str, Sequence[float]], *, metric: str = "acc", stamp: str = STAMP,
    stderr: float | str = 0.1, higher_is_better: bool = True, hashes: Mapping[str, Sequence[str]] | None = None,
    group: tuple[str, bool] | None = None,
) -> Path:  # fmt: skip
    """A folder with one metric per task, whose value is the mean of the items' scores.

    Args:
        scores: per task what each item scored.
        hashes: per task the hash of each item; else one that is made of its number.
        group: name of a group of all tasks, and whether it weighs them by their items.
    """
    folder.mkdir(parents=True, exist_ok=True)
    content: dict[str, Any] = {
        "results": {
            task: {
                "alias": task, "sample_len": len(values), f"{metric},none": sum(values) / len(values),
                f"{metric}_stderr,none": stderr,
            }
            for task, values in scores.items()
        },
        "group_subtasks": {},
        "n-shot": {task: 5 for task in scores},
        "n-samples": {task: {"original": len(values), "effective": len(values)} for task, values in scores.items()},
        "higher_is_better": {task: {metric: higher_is_better} for task in scores},
        "config": {"model": "a small Llama"},
        "date": 1795291200.0,
    }  # fmt: skip
    if group is not None:
        name, by_items = group
        means = [sum(values) / len(values) for values in scores.values()]
        items = [item for values in scores.values() for item in values]
        value = sum(items) / len(items) if by_items else sum(means) / len(means)
        content["results"][name] = {"alias": name, f"{metric},none": value, "sample_len": len(items)}
        content["group_subtasks"] = {name: list(scores)}
    (folder / f"results_{stamp}.json").write_text(json.dumps(content), encoding="utf-8")
    for task, values in scores.items():
        own = (hashes or {}).get(task) or [f"hash of {number}" for number in range(len(values))]
        lines = [
            {"doc_id": number, "doc": {}, "doc_hash": own[number], "filter": "none", "metrics": [metric], metric: value}
            for number, value in enumerate(values)
        ]
        text = "".join(json.dumps(line) + "\n" for line in lines)
        (folder / f"samples_{task}_{stamp}.jsonl").write_text(text, encoding="utf-8")
    return folder


def write_evaluation(
    folder: Path, scores: dict[str, float], comparison: dict[str, Any] | None = None, model: str = "the model"
) -> Path:
    """A finished evaluation in the harness's format: task → accuracy."""
    folder.mkdir(parents=True)
    content = {
        "results": {task: {"alias": task, "acc,none": acc, "acc_stderr,none": 0.01} for task, acc in scores.items()},
        "n-shot": dict.fromkeys(scores, 5),
        "n-samples": {task: {"original": 50, "effective": 50} for task in scores},
        "higher_is_better": {task: {"acc": True} for task in scores},
        "config": {"model": "checkpoint"}, "model_name": model, "date": 1.7e9,
    }  # fmt: skip
    (folder / "results_2026-11-21T20-00-00.json").write_text(json.dumps(content))
    if comparison is not None:
        (folder / "comparison.json").write_text(json.dumps(comparison))
    return folder
