"""Benchmarks against the first measurement, as records and as a table."""

from __future__ import annotations

from megatron_synE.training.benchmarks import BenchmarkScores, scores_from_json, scores_to_json
from megatron_synE.training.tables import benchmarks_text

FIRST = BenchmarkScores({"sciq": {"acc": 0.5, "acc_norm": 0.25, "num_items": 4}}, {"sciq": "a"})
LATER = BenchmarkScores(
    {"sciq": {"acc": 0.75, "acc_norm": 0.25, "num_items": 4}, "mmlu": {"acc": 0.4, "num_items": 14042}},
    {"sciq": "a", "mmlu": "b"},
)


def test_changes_are_those_of_the_same_requests() -> None:
    assert LATER.changes_since(FIRST) == {"sciq": {"acc": 0.25, "acc_norm": 0.0}}
    assert BenchmarkScores(FIRST.scores, {"sciq": "other"}).changes_since(FIRST) == {}


def test_what_goes_into_a_checkpoint_comes_back() -> None:
    assert scores_from_json(scores_to_json((7, LATER))) == (7, LATER)
    assert scores_from_json(scores_to_json(None)) is None


def test_the_table_has_a_change_where_there_is_one() -> None:
    assert benchmarks_text(FIRST, None).splitlines() == [
        "benchmarks", "           acc  acc_norm  items", "  sciq  0.5000    0.2500      4",
    ]  # fmt: skip
    assert benchmarks_text(LATER, (0, FIRST)).splitlines()[1:] == [
        "           acc  since step 0  acc_norm  since step 0   items",
        "  sciq  0.7500       +0.2500    0.2500       +0.0000       4",
        "  mmlu  0.4000                                        14,042",
    ]
