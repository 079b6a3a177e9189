"""What the guard does about given measurements: whom share goes back to, when, and what it says where it cannot."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from megatron_synE.config.parse import parse_job
from megatron_synE.training.forgetting import Figure
from megatron_synE.training.guard import Guard
from megatron_synE.training.run_state import start_run_state
from tests.helpers.runs import write_job

RULE = {"step": 0.1, "cooldown_steps": 3}


class Told:
    """Metrics and progress of a test."""

    def __init__(self) -> None:
        self.records: list[tuple[str, int, dict[str, Any]]] = []
        self.notes: list[str] = []

    def write(self, kind: str, step: int, values: dict[str, Any]) -> None:
        self.records.append((kind, step, values))

    def note(self, text: str) -> None:
        self.notes.append(text)

    def forgetting(self) -> list[tuple[int, str, str, str]]:
        kinds = [(step, values) for kind, step, values in self.records if kind == "forgetting"]
        return [(step, v["what"], v["reaction"], v.get("reason", "")) for step, v in kinds]

    def weights(self) -> list[tuple[int, dict[str, float]]]:
        """After each decision."""
        return [(step, values["shares_after"]) for kind, step, values in self.records if kind == "decision"]


def play(
    folder: Path, measurements: dict[int, dict[str, float]], bounds: dict[str, Any], rule: dict[str, Any] | None = None,
    reaction: str = "restore_share", **guard: Any,
) -> tuple[Guard, Told]:  # fmt: skip
    """A guard that is shown measurements, by step; `article` is a third source, with little weight."""
    arguments = write_job(folder, evaluation={"guard": {
        "max_loss_increase": bounds, "reaction": reaction, "restore": {**RULE, **(rule or {})}, **guard,
    }})  # fmt: skip
    stage = {"name": "one", "tokens": 160 * 16, "weights": {"web": 0.6, "book": 0.3, "article": 0.1}}
    third = ["--data.sources.article.prefix", str(folder / "book"), "--data.stages", str([stage])]
    job, told = parse_job([*arguments, *third]), Told()
    run: Any = SimpleNamespace(job=job, state=start_run_state(job, vocab_size=300, cache_builder=True))
    guard_of_run = Guard(run, told, told)  # type: ignore[arg-type]
    for step in range(max(measurements) + 1):
        if step in measurements:
            moved = guard_of_run.look({what: Figure(value, "") for what, value in measurements[step].items()})
            assert moved == (bool(told.weights()) and told.weights()[-1][0] == step)
        run.state.trajectory.advance()
    return guard_of_run, told


def losses(**values: float) -> dict[str, float]:
    return {f"loss of {name}": value for name, value in {"web": 3.0, "book": 3.0, **values}.items()}


def test_a_source_has_to_wait_and_is_restored_only_so_often(tmp_path: Path) -> None:
    shown = {0: losses(), 2: losses(book=3.2), 4: losses(book=3.3), 5: losses(book=3.3), 9: losses(book=3.9)}
    guard, told = play(tmp_path, shown, {"default": 0.1, "sources": {"article": None}}, {"max_restorations": 2})
    assert told.weights()[0] == (2, {"article": 0.0857, "book": 0.4, "web": 0.5143})
    assert [(step, after["book"]) for step, after in told.weights()] == [(2, 0.4), (5, 0.5)]
    assert told.forgetting() == [
        (2, "loss of book", "restore_share", ""),
        (5, "loss of book", "restore_share", ""),
        (9, "loss of book", "warn", "share was moved back to book 2 times already (max_restorations)"),
    ]
    assert guard.run.state.forgetting.restored == {"book": [2, 5]} and guard.stop_cause is None
    assert any("source shares" in note for note in told.notes)


def test_a_source_past_its_bound_gives_nothing_while_it_waits(tmp_path: Path) -> None:
    shown = {0: losses(), 2: losses(book=3.2), 4: losses(web=3.2, book=3.2)}
    _, told = play(tmp_path, shown, {"default": 0.1, "sources": {"article": None}})
    (_, first), (_, second) = told.weights()
    assert second["book"] == first["book"] == 0.4
    assert second["web"] > first["web"] and second["article"] < first["article"]
    assert told.forgetting()[-1] == (4, "loss of web", "restore_share", ""), "of the book there are no news"


def test_several_sources_stand_for_a_benchmark(tmp_path: Path) -> None:
    shown = {0: {"acc of sciq": 0.8}, 1: {"acc of sciq": 0.77}, 2: {"acc of sciq": 0.7}}
    benchmark = {"max_benchmark_drop": {"sciq": 3}, "benchmark_sources": {"sciq": ["book", "article"]}}
    _, told = play(tmp_path, shown, {}, **benchmark)
    assert told.weights() == [(2, {"article": 0.2, "book": 0.4, "web": 0.4})], "3 points are not past 3"


@pytest.mark.parametrize(
    "rule, reason",
    [({"cap": 0.3}, "the cap of 0.3 on a source's weight"), ({"floor": 0.999999}, "no other source has more")],
)
def test_what_cannot_be_moved_is_a_warning(tmp_path: Path, rule: dict[str, Any], reason: str) -> None:
    shown = {0: losses(), 2: losses(book=3.2), 4: losses(book=3.3)}
    guard, told = play(tmp_path, shown, {"default": 0.1, "sources": {"article": None}}, rule)
    ((step, what, reaction, why),) = told.forgetting()
    assert (step, what, reaction) == (2, "loss of book", "warn") and why.startswith(reason)
    assert told.weights() == [] and guard.run.state.stream.decisions == []


def test_a_stop_names_all_that_is_past_its_bound(tmp_path: Path) -> None:
    guard, told = play(tmp_path, {0: losses(), 3: losses(web=3.2, book=3.5)}, {"default": 0.1}, reaction="stop")
    assert [row[:3] for row in told.forgetting()] == [(3, "loss of web", "stop"), (3, "loss of book", "stop")]
    cause = str(guard.stop_cause)
    assert cause.startswith("evaluation.guard: after step 3 the run has forgotten more than it may: loss of web 3.2000")
    assert "loss of book" in cause


def test_a_baseline_that_is_not_of_step_0_is_told(tmp_path: Path) -> None:
    _, told = play(tmp_path, {4: losses(), 6: losses(book=3.05)}, {"default": 0.1}, reaction="warn")
    (note,) = told.notes
    assert note.startswith("step 4: evaluation.guard compares with this measurement, not with step 0")
    assert "loss of book 3.0000" in note


def test_what_is_within_its_bound_again_is_told(tmp_path: Path) -> None:
    shown = {0: losses(), 2: losses(book=3.2), 4: losses(book=3.1), 6: losses(book=3.2)}
    _, told = play(tmp_path, shown, {"default": 0.15}, reaction="warn")
    assert "step 4: loss of book 3.1000 is within its bound again" in told.notes
    assert [row[0] for row in told.forgetting()] == [2, 6]


def test_nothing_is_guarded_without_a_bound(tmp_path: Path) -> None:
    guard, told = play(tmp_path, {0: losses(), 2: losses(book=9.0)}, {}, reaction="warn")
    assert told.records == [] and told.notes == [] and "loss of book" in guard.run.state.forgetting.baselines
