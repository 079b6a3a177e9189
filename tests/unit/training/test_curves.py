"""TensorBoard shows the configuration; Weights & Biases continues its run, and its failures are told once."""

from __future__ import annotations

import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from megatron_synE.config.training import LoggingConfig, WandbConfig
from megatron_synE.training.curves import TensorBoardCurves, WandbCurves, curves_of
from megatron_synE.training.metrics import MetricsWriter


class FakeRun:
    """One run, as wandb hands it out."""

    url = None

    def __init__(self, options: dict[str, Any]) -> None:
        self.options = options
        self.logged: list[dict[str, Any]] = []
        self.metrics: dict[str, Any] = {}
        self.exit_code: int | None = None
        self.is_broken = False

    def define_metric(self, name: str, step_metric: str | None = None) -> None:
        self.metrics[name] = step_metric

    def log(self, values: dict[str, Any]) -> None:
        if self.is_broken:
            raise RuntimeError("the service has gone\nand more of that")
        self.logged.append(values)

    def finish(self, exit_code: int) -> None:
        self.exit_code = exit_code


@pytest.fixture
def runs(monkeypatch: pytest.MonkeyPatch) -> list[FakeRun]:
    """The runs that a fake wandb was asked for."""
    found: list[FakeRun] = []

    def init(**options: Any) -> FakeRun:
        found.append(FakeRun(options))
        return found[-1]

    monkeypatch.setitem(sys.modules, "wandb", SimpleNamespace(init=init, Settings=lambda **given: given))  # type: ignore[arg-type]
    return found


def wandb_curves(folder: Path, said: list[str]) -> WandbCurves:
    return WandbCurves(WandbConfig(project="p", name="n", mode="offline"), {"data": {"seed": 1}}, folder, said.append)


def test_off_by_default(tmp_path: Path) -> None:
    (only,) = curves_of(LoggingConfig(), {}, tmp_path, print)
    assert isinstance(only, TensorBoardCurves)
    assert curves_of(LoggingConfig(tensorboard=False), {}, tmp_path, print) == []


def test_a_resumed_run_goes_on_with_its_run_of_wandb(tmp_path: Path, runs: list[FakeRun]) -> None:
    said: list[str] = []
    for first_step in (0, 2):
        writer = MetricsWriter(tmp_path, resumed_step=first_step, curves=[wandb_curves(tmp_path, said)])
        losses = {"loss": 2.0, "loss_by_component": {"web": 3.0}, "grad_norm": float("nan")}
        writer.write("step", first_step + 1, losses)
        writer.close(failed=first_step == 2)
    first, second = runs
    assert first.options["id"] == second.options["id"] == (tmp_path / "wandb_run_id").read_text()
    assert first.options["resume"] == "allow" and first.options["config"] == {"data": {"seed": 1}}
    assert (first.options["project"], first.options["name"], first.options["mode"]) == ("p", "n", "offline")
    assert first.logged == [{"step": 1, "step/loss": 2.0, "step/loss_by_component/web": 3.0}]
    assert first.metrics == {"step": None, "*": "step"}
    assert (first.exit_code, second.exit_code) == (0, 1)
    assert said == [f"Weights & Biases: {tmp_path / 'wandb'}"] * 2


def test_starts_and_stops_are_no_curves(tmp_path: Path, runs: list[FakeRun]) -> None:
    writer = MetricsWriter(tmp_path, resumed_step=0, curves=[wandb_curves(tmp_path, [])])
    writer.write("start", 0, {"num_processes": 2, "config": {"data": {"seed": 1}}})
    writer.write("stop", 3, {"reason": "told"})
    writer.close()
    (run,) = runs
    assert run.logged == [] and len((tmp_path / "metrics.jsonl").read_text().splitlines()) == 2


def test_a_run_that_goes_back_stays_one_run(tmp_path: Path, runs: list[FakeRun]) -> None:
    writer = MetricsWriter(tmp_path, resumed_step=0, curves=[wandb_curves(tmp_path, [])])
    writer.write("step", 1, {"loss": 2.0})
    writer.rewind(0, lambda record: False)
    writer.write("step", 1, {"loss": 1.0})
    writer.close()
    (run,) = runs
    assert [values["step/loss"] for values in run.logged] == [2.0, 1.0]


def test_a_service_that_fails_is_told_once_and_left_alone(tmp_path: Path, runs: list[FakeRun]) -> None:
    said: list[str] = []
    writer = MetricsWriter(tmp_path, resumed_step=0, curves=[wandb_curves(tmp_path, said)])
    runs[0].is_broken = True
    for step in (1, 2, 3):
        writer.write("step", step, {"loss": 2.0})
    writer.rewind(3, lambda record: True)
    writer.close()
    assert len(runs) == 1
    assert said[1:] == ["WARNING: logging.wandb: the service has gone; the run goes on without Weights & Biases"]
    assert len((tmp_path / "metrics.jsonl").read_text().splitlines()) == 3


def test_a_service_that_cannot_be_reached(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "wandb", None)  # import wandb fails
    said: list[str] = []
    writer = MetricsWriter(tmp_path, resumed_step=0, curves=[wandb_curves(tmp_path, said)])
    writer.write("step", 1, {"loss": 2.0})
    writer.close()
    assert len(said) == 1 and said[0].startswith("WARNING: logging.wandb: ")


def test_tensorboard_shows_the_configuration(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    writer = MetricsWriter(tmp_path, resumed_step=4, curves=[TensorBoardCurves(tmp_path / "tensorboard")])
    writer.text("configuration", 4, "data:\n  seed: 1\n")
    writer.close()
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    (name,) = events.Tags()["tensors"]
    (event,) = events.Tensors(name)
    assert name.startswith("configuration") and event.step == 4
    assert event.tensor_proto.string_val[0].decode() == "    data:\n      seed: 1"
