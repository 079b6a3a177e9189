"""Paired differences of two evaluations."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from megatron_synE.config.evaluation_results import read_evaluation
from megatron_synE.evaluation.comparison import compare, interval, table, verdict
from tests.helpers.evaluations import make_evaluation


def test_a_known_case(tmp_path: Path) -> None:
    ours, theirs = [1.0] * 80 + [0.0] * 20, [1.0] * 50 + [0.0] * 50  # 30 of 100 items gained, none lost
    make_evaluation(tmp_path / "ours", {"sciq": ours, "mmlu": [0.0, 1.0] * 20, "worse": [0.0] * 50})
    make_evaluation(tmp_path / "theirs", {"sciq": theirs, "mmlu": [1.0, 0.0] * 20, "worse": [1.0] * 25 + [0.0] * 25})
    found = compare(read_evaluation(tmp_path / "ours"), read_evaluation(tmp_path / "theirs"), "base")
    rows = {row.task: row for row in found.metrics}
    assert [row.verdict for row in found.metrics] == ["gained", "unclear", "lost"]
    sciq = rows["sciq"]
    assert (sciq.ours, sciq.theirs, sciq.num_items) == (0.8, 0.5, 100)
    assert sciq.difference == pytest.approx(0.3)
    # The mean of 100 items of which 30 % are 1: standard error sqrt(0.3 · 0.7 / 100) = 0.0458.
    assert sciq.low == pytest.approx(0.3 - 1.96 * 0.0458, abs=0.012)
    assert sciq.high == pytest.approx(0.3 + 1.96 * 0.0458, abs=0.012)
    line = next(line for line in table(found) if line.startswith("sciq"))
    assert line.split()[:5] == ["sciq", "acc", "0.8000", "0.5000", "+0.3000"] and line.endswith("100  gained")


def test_the_interval_is_that_of_resampled_means() -> None:
    random = np.random.default_rng(7)
    few, many = random.choice([-1.0, 0.0, 1.0], 200), random.normal(0.1, 1.0, 200)
    for part in (few, many):
        drawn = np.array([random.choice(part, len(part)).mean() for _ in range(4000)])
        low, high = interval([part], [1.0])
        assert (low, high) == pytest.approx(np.quantile(drawn, [0.025, 0.975]), abs=0.02)
        assert interval([part], [1.0]) == (low, high)
    # Two parts are drawn apart: the variances add up with squared weights.
    low, high = interval([few, many], [0.25, 0.75])
    standard_error = np.sqrt((0.25**2) * few.var() / 200 + (0.75**2) * many.var() / 200)
    assert (high - low) / 2 == pytest.approx(1.96 * standard_error, rel=0.05)


def test_the_verdict_follows_the_metrics_direction() -> None:
    assert verdict(0.1, 0.2, higher_is_better=True) == verdict(-0.2, -0.1, higher_is_better=False) == "gained"
    assert verdict(-0.2, -0.1, higher_is_better=True) == verdict(0.1, 0.2, higher_is_better=False) == "lost"
    assert verdict(-0.1, 0.1, higher_is_better=True) == verdict(0.0, 0.1, higher_is_better=True) == "unclear"


def test_items_are_matched_by_their_content(tmp_path: Path) -> None:
    make_evaluation(tmp_path / "ours", {"t": [1.0, 0.0, 1.0]}, hashes={"t": ["a", "b", "a"]})
    make_evaluation(tmp_path / "theirs", {"t": [1.0, 1.0, 0.0]}, hashes={"t": ["a", "a", "b"]})
    (row,) = compare(read_evaluation(tmp_path / "ours"), read_evaluation(tmp_path / "theirs"), "base").metrics
    assert (row.low, row.high, row.verdict) == (0.0, 0.0, "unclear")


def test_other_items_are_not_compared(tmp_path: Path) -> None:
    make_evaluation(tmp_path / "ours", {"t": [1.0, 0.0], "own": [1.0]}, hashes={"t": ["a", "b"]})
    make_evaluation(tmp_path / "theirs", {"t": [1.0, 0.0], "their": [1.0]}, hashes={"t": ["a", "c"]})
    found = compare(read_evaluation(tmp_path / "ours"), read_evaluation(tmp_path / "theirs"), "base")
    assert found.metrics == ()
    assert found.not_compared == {
        "t": "the items differ: 2 here, 2 there, 1 the same", "own": "only here", "their": "only there",
    }  # fmt: skip
    assert "t: not compared: the items differ" in "\n".join(table(found))


@pytest.mark.parametrize("weigh_by_items", [True, False])
def test_a_group_is_compared_by_the_weights_of_its_figure(tmp_path: Path, weigh_by_items: bool) -> None:
    scores = {"ours": {"a": [1.0] * 40, "b": [0.0] * 10}, "theirs": {"a": [0.0] * 40, "b": [1.0] * 10}}
    for name, own in scores.items():
        folder = make_evaluation(tmp_path / name, own, group=("group", weigh_by_items))
        assert read_evaluation(folder).task("group").subtasks == ("a", "b")
    found = compare(read_evaluation(tmp_path / "ours"), read_evaluation(tmp_path / "theirs"), "base")
    row = next(row for row in found.metrics if row.task == "group")
    assert row.difference == pytest.approx(0.6 if weigh_by_items else 0.0)
    assert (row.low, row.high) == pytest.approx((row.difference, row.difference))  # within a task all items agree
    assert row.num_items == 50
