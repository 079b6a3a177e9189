"""Bounds by source, language and component; what contradicts itself or the data is told by the field."""

from __future__ import annotations

from typing import Any

import pytest

from megatron_synE.config.benchmarks import BenchmarksConfig
from megatron_synE.config.data import DataConfig, SourceConfig
from megatron_synE.config.evaluation import EvaluationConfig
from megatron_synE.config.guard import GuardConfig, LossBounds, RestoreConfig
from megatron_synE.config.job import JobConfig

DATA = DataConfig(
    {
        "web_en": SourceConfig("e", "en", topics=True),
        "book_en": SourceConfig("b", "en"),
        "web_zh": SourceConfig("z", "zh", topics=True),
        "synthesis": SourceConfig("s", "synthetic"),
    }
)


def problems(data: DataConfig = DATA, at_start: bool = True, interval_steps: int | None = 5, **guard: Any) -> list[str]:
    benchmarks = BenchmarksConfig(["sciq"], "data", interval_steps)
    return EvaluationConfig(interval_steps, at_start, benchmarks=benchmarks, guard=GuardConfig(**guard)).guard_problems(
        data
    )


def test_the_most_specific_bound_counts() -> None:
    bounds = LossBounds(0.1, {"en": 0.2, "synthetic": None}, {"book_en": 0.3, "web_zh/law": 0.4})
    assert bounds.by_name(DATA) == {"web_en": 0.2, "book_en": 0.3, "web_zh": 0.1, "web_zh/law": 0.4}
    assert LossBounds(None, {"en": 0.2}, {"web_en": None}).by_name(DATA) == {"book_en": 0.2}
    assert LossBounds().by_name(DATA) == {} and not GuardConfig().is_on
    assert not GuardConfig(LossBounds(sources={"web_en": None})).is_on
    assert problems(max_loss_increase=bounds, max_benchmark_drop={"sciq": 1.5}) == []


WRONG: dict[str, dict[str, Any]] = {
    "max_loss_increase.default: 0 is not positive": {"max_loss_increase": LossBounds(0)},
    "max_loss_increase.languages.en: -1 is not positive": {"max_loss_increase": LossBounds(languages={"en": -1})},
    "max_loss_increase.sources.web_en: nan is not positive": {
        "max_loss_increase": LossBounds(sources={"web_en": float("nan")})
    },
    "no source has language 'fr'; languages are en, synthetic, zh": {
        "max_loss_increase": LossBounds(languages={"fr": 1})
    },
    "unknown source 'web'; sources are web_en": {"max_loss_increase": LossBounds(sources={"web": 1})},
    "'book_en/law' is a topic, but book_en is read without": {
        "max_loss_increase": LossBounds(sources={"book_en/law": 1})
    },
    "max_benchmark_drop: 'mmlu' is not measured; add it to evaluation.benchmarks.tasks (sciq)": {
        "max_benchmark_drop": {"mmlu": 1}
    },
    "max_benchmark_drop.sciq: 101 is not a number of points": {"max_benchmark_drop": {"sciq": 101}},
    "which sources stand for sciq": {"max_benchmark_drop": {"sciq": 1}, "reaction": "restore_share"},
    "benchmark_sources: 'mmlu' has no bound": {
        "max_benchmark_drop": {"sciq": 1}, "benchmark_sources": {"mmlu": ["web_en"]},
    },
    "benchmark_sources.sciq: unknown source 'web'": {
        "max_benchmark_drop": {"sciq": 1}, "benchmark_sources": {"sciq": ["web"]},
    },
    "evaluation.guard: no bound is given": {"reaction": "stop"},
    "evaluation.at_start: evaluation.guard compares": {"max_loss_increase": LossBounds(1), "at_start": False},
    "evaluation.interval_steps: none": {"max_loss_increase": LossBounds(1), "interval_steps": None},
    "evaluation.benchmarks.interval_steps: none": {"max_benchmark_drop": {"sciq": 1}, "interval_steps": None},
}  # fmt: skip


@pytest.mark.parametrize("message", WRONG)
def test_contradictions_are_named(message: str) -> None:
    (found,) = problems(**WRONG[message])
    assert message in found and found.startswith("evaluation.")


@pytest.mark.parametrize(
    "fields, message",
    [
        ({"step": "a lot"}, "restore.step: 'a lot' is not a number"),
        ({"step": 1}, "restore.step: 1 is not in [0, 1)"),
        ({"factor": 0.5}, "restore.factor: 0.5 is less than 1"),
        ({"step": 0}, "restore.step, factor: 0 and 1 move nothing"),
        ({"cap": 1}, "restore.cap: 1 is not between 0 and 1"),
        ({"floor": 1}, "restore.floor: 1 is not in [0, 1)"),
        ({"cooldown_steps": 0}, "restore.cooldown_steps: 0 is not positive"),
        ({"max_restorations": 0}, "restore.max_restorations: 0 is not positive"),
    ],
)
def test_a_restoration_that_cannot_be(fields: dict[str, Any], message: str) -> None:
    bound = LossBounds(0.1)
    (found,) = problems(max_loss_increase=bound, reaction="restore_share", restore=RestoreConfig(**fields))
    assert found.startswith(f"evaluation.guard.{message}")
    assert problems(max_loss_increase=bound, restore=RestoreConfig(**fields)) == [], "nothing is restored"


def test_a_source_without_held_out_text_or_without_others() -> None:
    data = DataConfig({"a": SourceConfig("a"), "b": SourceConfig("b", heldout_fraction=0.0)})
    (found,) = problems(data, max_loss_increase=LossBounds(0.1))
    assert "source b has no held-out documents" in found and "data.sources.b.heldout_fraction" in found
    assert problems(data, max_loss_increase=LossBounds(0.1, sources={"b": None})) == []
    alone = DataConfig({"a": SourceConfig("a")})
    (found,) = problems(alone, max_loss_increase=LossBounds(0.1), reaction="restore_share")
    assert "restore_share with one source" in found


def test_a_stop_needs_a_place_to_save() -> None:
    guard = GuardConfig(LossBounds(0.1), reaction="stop")
    job = JobConfig(data=DATA, evaluation=EvaluationConfig(5, guard=guard))
    assert any("evaluation.guard.reaction: stop saves" in problem for problem in job.problems(1))
