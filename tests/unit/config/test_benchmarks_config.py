"""evaluation.benchmarks: what cannot work, and when something is due."""

from __future__ import annotations

from typing import Any

import pytest

from megatron_synE.config.benchmarks import BenchmarksConfig


@pytest.mark.parametrize(
    "fields, problem",
    [
        ({"tasks": ["sciq"]}, "data_dir: no folder is given"),
        ({"data_dir": "data"}, "tasks: none are named"),
        ({"tasks": ["sciq", "sciq"], "data_dir": "data"}, "tasks: sciq stands there twice"),
        ({"interval_steps": 0}, "interval_steps: 0 is not positive; use 1 or more, or null"),
        ({"limit": 0}, "limit: 0 is not positive; use 1 or more, or null"),
        ({"tokens_per_batch": -1}, "tokens_per_batch: -1 is not positive; use 1 or more"),
        ({"num_fewshot": -1}, "num_fewshot: -1 is negative"),
    ],
)
def test_what_cannot_work_is_told(fields: dict[str, Any], problem: str) -> None:
    (found,) = BenchmarksConfig(**fields).problems()
    assert found.startswith(f"evaluation.benchmarks.{problem}")


def test_nothing_is_wrong_without_benchmarks_and_with_them() -> None:
    assert BenchmarksConfig().problems() == []
    assert BenchmarksConfig(tasks=["sciq"], data_dir="data", num_fewshot=0).problems() == []


def test_due_at_the_start_each_interval_and_the_end() -> None:
    def due(**fields: Any) -> list[int]:
        config = BenchmarksConfig(tasks=["sciq"], data_dir="data", **fields)
        return [step for step in range(11) if config.is_due(step, 10)]

    assert due() == [0, 10]
    assert due(interval_steps=4) == [0, 4, 8, 10]
    assert due(interval_steps=5, at_start=False, at_end=False) == [5]
    assert not BenchmarksConfig(interval_steps=1).is_due(0, 10), "without tasks nothing is"
