"""The evaluation before the first step: recorded once, known after a resume, and of no influence on what follows."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.helpers.distributed import run_distributed
from tests.helpers.runs import records, train, write_job

STEPS = ("loss", "loss_by_component", "grad_norm", "learning_rate", "consumed_samples")


def several_starts(starts: list[list[str]]) -> list[dict[str, Any]]:
    return [train(arguments) for arguments in starts]


def starts(folder: Path, *more: list[str], num_processes: int = 1, **sections: Any) -> list[dict[str, Any]]:
    """Starts of a run of 6 steps without live adjustment, which would measure at step 0 by itself."""
    folder.mkdir()
    training = {"train_steps": 6, **sections.pop("training", {})}
    arguments = write_job(folder, data={"adjustment": {}}, training=training, **sections)
    return run_distributed(several_starts, num_processes, [[*arguments, *each] for each in more or [[]]])[0]


def of_steps(folder: Path) -> list[dict[str, Any]]:
    return [{name: record[name] for name in STEPS} for record in records(folder, "step")]


@pytest.mark.parametrize("num_processes", [1, 2])
def test_training_does_not_notice_it(tmp_path: Path, num_processes: int) -> None:
    parallel = {"overlap_grad_reduce": True, "overlap_param_gather": True} if num_processes > 1 else {}
    finals = [
        starts(tmp_path / name, num_processes=num_processes, parallel=parallel, evaluation={"at_start": at_start})[0]
        for name, at_start in (("with", True), ("without", False))
    ]
    assert finals[0]["weights"] == finals[1]["weights"]
    assert of_steps(tmp_path / "with") == of_steps(tmp_path / "without")
    assert [record["step"] for record in records(tmp_path / "with", "evaluation")] == [0, 6]
    assert [record["step"] for record in records(tmp_path / "without", "evaluation")] == [6]


def test_a_resumed_run_knows_it(tmp_path: Path) -> None:
    """Also where the first start came to no checkpoint, and step 0 was begun twice."""
    stopped = ["--training.exit_after_steps", "2", "--checkpoint.save_interval_steps", "100"]
    folder = tmp_path / "run"
    starts(folder, stopped)
    for checkpoint in (folder / "run").glob("step_*"):
        for file in checkpoint.iterdir():
            file.unlink()
        checkpoint.rmdir()
    (folder / "run" / "latest").unlink()
    arguments = ["--config", str(folder / "job.yaml")]
    run_distributed(several_starts, 1, [[*arguments, "--training.exit_after_steps", "3"], arguments])
    at_start, at_end = records(folder, "evaluation")
    assert (at_start["step"], at_end["step"]) == (0, 6)
    state = json.loads((folder / "run" / "step_00000006" / "state.json").read_text(encoding="utf-8"))
    assert state["first_evaluation"]["step"] == 0
    assert state["first_evaluation"]["loss_by_component"] == at_start["loss"]
    assert state["last_evaluation"]["loss_by_component"] == at_end["loss"]
