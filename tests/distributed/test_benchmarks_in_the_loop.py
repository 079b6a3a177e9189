"""When the loop measures benchmarks, what it keeps of them, and what a resume, a stop and a rollback leave."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from megatron_synE.training.benchmarks import BenchmarkScores
from tests.helpers.distributed import run_distributed
from tests.helpers.runs import records, train, write_job

BENCHMARKS = {"tasks": ["sciq"], "data_dir": ".", "tokenizer": "none is asked", "interval_steps": 2}


class WeightsAsScores:
    """Scores that change with the weights; `num_parts` calls between."""

    def __init__(self, run: Any, asked: str = "as before", stop: Callable[[], None] | None = None) -> None:
        self.run_of_all, self.fingerprints, self.stop = run, {"sciq": asked}, stop

    def run(self, between: Callable[[int, int], None]) -> BenchmarkScores:
        for done in range(3):
            between(done, 3)
            if self.stop is not None and done == 1:
                self.stop()
        parameters = [parameter for chunk in self.run_of_all.model_chunks for parameter in chunk.parameters()]
        total = sum(parameter.detach().double().sum().item() for parameter in parameters)
        return BenchmarkScores({"sciq": {"acc": total, "num_items": 7}}, dict(self.fingerprints))


def several_starts(arguments: list[str], starts: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Each with further `arguments`, and what is `asked`; `stops` or `fails` (once) in the measurement of a step."""
    import signal

    from megatron_synE.training.faults import StopSignal

    results = []
    for start in starts:
        signals: list[StopSignal] = []
        init = StopSignal.__init__

        def remembered(self: StopSignal, *args: Any, signals: Any = signals, init: Any = init) -> None:
            init(self, *args)
            signals.append(self)

        def measured(run: Any, start: dict[str, Any] = start, signals: Any = signals) -> Any:
            if start.get("without"):
                return None

            def stop() -> None:
                if run.state.trajectory.step == start.get("stops"):
                    signals[0]._remember(signal.SIGTERM, None)
                if run.state.trajectory.step == start.get("fails") and not run.state.incidents.incidents:
                    raise FloatingPointError("a log-likelihood is nan")

            found = WeightsAsScores(run, start.get("asked", "as before"), stop)
            run.state.compare_benchmarks(found.fingerprints)
            return found

        StopSignal.__init__ = remembered  # type: ignore[method-assign,assignment]
        try:
            results.append(train([*arguments, *start.get("arguments", [])], benchmarks=measured))
        finally:
            StopSignal.__init__ = init  # type: ignore[method-assign]
    return results


def starts(folder: Path, *each: dict[str, Any], num_processes: int = 1, **sections: Any) -> list[dict[str, Any]]:
    folder.mkdir(exist_ok=True)
    training = {"train_steps": 7, **sections.pop("training", {})}
    arguments = write_job(folder, training=training, evaluation={"benchmarks": BENCHMARKS}, **sections)
    return run_distributed(several_starts, num_processes, arguments, list(each))[0]


def measured_at(folder: Path) -> list[int]:
    return [record["step"] for record in records(folder, "benchmark")]


def values(folder: Path, kind: str = "benchmark") -> list[Any]:
    return [{name: r[name] for name in r if name in ("step", "benchmarks", "loss")} for r in records(folder, kind)]


def test_a_resumed_run_measures_as_an_uninterrupted_one(tmp_path: Path) -> None:
    """Saved after steps 3, 6 and 7; measured after 0, 2, 4, 6 and 7."""
    whole = tmp_path / "whole"
    starts(whole, {})
    assert measured_at(whole) == [0, 2, 4, 6, 7]
    assert all(r["seconds"] >= 0 and r["benchmarks"]["sciq"]["num_items"] == 7 for r in records(whole, "benchmark"))
    state = json.loads((whole / "run" / "step_00000007" / "state.json").read_text(encoding="utf-8"))
    assert (state["first_benchmarks"]["step"], state["last_benchmarks"]["step"]) == (0, 7)
    starts(tmp_path / "without", {"without": True})
    assert values(whole, "step") == values(tmp_path / "without", "step"), "training does not notice it"
    for step in (3, 6):
        again = tmp_path / f"again-{step}"
        shutil.copytree(whole, again)
        for path in (again / "run").glob("step_*"):
            if int(path.name[5:]) > step:
                shutil.rmtree(path)
        (again / "run" / "latest").unlink()
        starts(again, {}, {})
        assert values(again) == values(whole), f"resumed after step {step}"


def test_a_stop_in_a_measurement_gives_it_up_until_the_run_goes_on(tmp_path: Path) -> None:
    results = starts(tmp_path, {"stops": 0}, {"stops": 4}, {"stops": 7}, {}, num_processes=2)
    assert [result["step"] for result in results] == [0, 4, 7, 7]
    assert measured_at(tmp_path) == [0, 2, 4, 6, 7]
    assert [r["step"] for r in records(tmp_path, "step")] == list(range(1, 8))


def test_other_requests_are_told_and_not_compared(tmp_path: Path) -> None:
    other = {"asked": "otherwise"}
    starts(tmp_path, {"arguments": ["--training.exit_after_steps", "5"]}, other, other)
    (record,) = records(tmp_path, "configuration")
    assert record["changes"] == {"evaluation.benchmarks.sciq.requests": ["as before", "otherwise"]}
    assert record["step"] == 5
    state = json.loads((tmp_path / "run" / "step_00000007" / "state.json").read_text(encoding="utf-8"))
    assert [change["step"] for change in state["config_changes"]] == [5]
    assert state["last_benchmarks"]["fingerprints"] == {"sciq": "otherwise"}


def test_benchmarks_that_are_turned_on_later_begin_where_the_run_stands(tmp_path: Path) -> None:
    starts(tmp_path, {"without": True, "arguments": ["--training.exit_after_steps", "3"]}, {}, {})
    assert measured_at(tmp_path) == [3, 4, 6, 7]


def test_numbers_that_are_not_finite_are_an_incident(tmp_path: Path) -> None:
    """The run goes back to its checkpoint of step 3, passes over the samples of step 4, and measures then."""
    healing = {"training": {"fail_on_nan": False}, "healing": {"nonfinite": "rollback"}}
    (result,) = starts(tmp_path, {"fails": 4}, **healing)
    (incident,) = records(tmp_path, "incident")
    assert (incident["step"], incident["resumed_from_step"]) == (4, 3)
    assert incident["cause"] == "a log-likelihood is nan"
    assert measured_at(tmp_path) == [0, 2, 4, 6, 7] and result["step"] == 7
