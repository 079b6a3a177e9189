"""Finished evaluations, as a model would leave them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any


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
