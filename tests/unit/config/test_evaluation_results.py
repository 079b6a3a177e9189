"""The reader of finished evaluations."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from megatron_synE.config.evaluation_results import is_finished, read_evaluation
from tests.helpers.evaluations import STAMP, make_evaluation


def test_metrics_items_and_samples_are_what_the_files_say(tmp_path: Path) -> None:
    make_evaluation(tmp_path, {"sciq": [1.0, 0.0, 1.0, 1.0], "mmlu": [0.0, 1.0]})
    evaluation = read_evaluation(tmp_path)
    assert evaluation.date == datetime(2026, 11, 21, 20, tzinfo=UTC)
    assert list(evaluation.tasks) == ["sciq", "mmlu"]
    sciq = evaluation.task("sciq")
    (acc,) = sciq.metrics
    assert (acc.name, acc.filter, acc.value, acc.stderr, acc.higher_is_better) == ("acc", "none", 0.75, 0.1, True)
    assert (sciq.num_items, sciq.num_fewshot, sciq.metric("acc").label) == (4, 5, "acc")
    samples = list(evaluation.samples("sciq"))
    assert [(sample.doc_id, sample.metrics["acc"]) for sample in samples] == [(0, 1.0), (1, 0.0), (2, 1.0), (3, 1.0)]
    assert samples[2].doc_hash == "hash of 2"
    assert (evaluation.manifest, evaluation.comparison) == (None, None)


def test_of_several_results_the_last_is_read(tmp_path: Path) -> None:
    make_evaluation(tmp_path, {"sciq": [0.0, 0.0]})
    make_evaluation(tmp_path, {"sciq": [1.0, 1.0]}, stamp="2026-11-21T21-00-00.000000")
    evaluation = read_evaluation(tmp_path)
    assert evaluation.task("sciq").metric("acc").value == 1.0
    assert [sample.metrics["acc"] for sample in evaluation.samples("sciq")] == [1.0, 1.0]


def test_manifest_and_comparison_are_read(tmp_path: Path) -> None:
    make_evaluation(tmp_path, {"sciq": [1.0, 0.0]})
    (tmp_path / "manifest.json").write_text('{"seed": 1}', encoding="utf-8")
    row = {
        "task": "sciq", "metric": "acc", "ours": 0.5, "theirs": 1, "difference": -0.5, "low": -1.0, "high": 0.0,
        "num_items": 2, "verdict": "unclear",
    }  # fmt: skip
    content = {"against": "../base", "metrics": [row], "not_compared": {"mmlu": "not in ../base"}}
    (tmp_path / "comparison.json").write_text(json.dumps(content), encoding="utf-8")
    evaluation = read_evaluation(tmp_path)
    assert evaluation.manifest == {"seed": 1}
    assert evaluation.comparison is not None
    (compared,) = evaluation.comparison.metrics
    assert (compared.task, compared.difference, compared.high, compared.verdict) == ("sciq", -0.5, 0.0, "unclear")
    assert evaluation.comparison.not_compared == {"mmlu": "not in ../base"}


def test_what_the_harness_calls_not_available_is_none(tmp_path: Path) -> None:
    make_evaluation(tmp_path, {"sciq": [1.0]}, stderr="N/A")
    assert read_evaluation(tmp_path).task("sciq").metric("acc").stderr is None


@pytest.mark.parametrize(
    "field, value, message",
    [
        ("date", None, "date is None, not a finite number"),
        ("results", [], "results: not a JSON object"),
        ("results", {"sciq": {"acc,none": float("nan")}}, "results.sciq.acc,none is nan, not a finite number"),
        ("results", {"sciq": {"acc,none": 0.5, "acc_stderr,none": "x"}}, "results.sciq.acc_stderr,none is 'x'"),
        ("n-samples", {"sciq": {"effective": -1}}, "n-samples.sciq.effective is -1"),
    ],
)
def test_damage_is_named(tmp_path: Path, field: str, value: Any, message: str) -> None:
    make_evaluation(tmp_path, {"sciq": [1.0]})
    path = tmp_path / f"results_{STAMP}.json"
    content = json.loads(path.read_text(encoding="utf-8"))
    path.write_text(json.dumps({**content, field: value}), encoding="utf-8")
    with pytest.raises(ValueError) as raised:
        read_evaluation(tmp_path)
    assert str(raised.value).startswith(f"{path}: ") and message in str(raised.value)


def test_a_damaged_line_of_samples_is_named(tmp_path: Path) -> None:
    make_evaluation(tmp_path, {"sciq": [1.0, 0.0]})
    path = tmp_path / f"samples_sciq_{STAMP}.jsonl"
    path.write_bytes(path.read_bytes()[:-5])
    with pytest.raises(ValueError, match=rf"samples_sciq_{STAMP}.jsonl:2: damaged"):
        list(read_evaluation(tmp_path).samples("sciq"))


def test_a_folder_without_results_says_what_is_missing(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no such folder"):
        read_evaluation(tmp_path / "gone")
    with pytest.raises(ValueError, match=r"no results_….json in it; give the output folder"):
        read_evaluation(tmp_path)
    make_evaluation(tmp_path / "model", {"sciq": [1.0]})
    with pytest.raises(ValueError, match=rf"give {tmp_path / 'model'}"):  # as lm_eval --output_path makes it
        read_evaluation(tmp_path)
    (tmp_path / "journal.jsonl").touch()
    with pytest.raises(ValueError, match="not finished; start it again, and it goes on"):
        read_evaluation(tmp_path)
    assert not is_finished(tmp_path) and is_finished(tmp_path / "model")


def test_tasks_metrics_and_samples_that_are_not_there_are_told(tmp_path: Path) -> None:
    make_evaluation(tmp_path, {"sciq": [1.0]})
    evaluation = read_evaluation(tmp_path)
    with pytest.raises(ValueError, match="has no task mmlu, only sciq"):
        evaluation.task("mmlu")
    with pytest.raises(ValueError, match="sciq: no metric acc_norm; it has acc"):
        evaluation.task("sciq").metric("acc_norm")
    (tmp_path / f"samples_sciq_{STAMP}.jsonl").unlink()
    with pytest.raises(ValueError, match=r"no samples_sciq_….jsonl"):
        read_evaluation(tmp_path).samples("sciq")
