"""A document that spoils the step that reads it: the run ends, leaves the step out, or goes back and passes over it."""

from __future__ import annotations

import functools
import math
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.helpers.distributed import run_distributed
from tests.helpers.runs import POISON, POISONED_DOCUMENT, records, train, write_job

NUM_STEPS = 20


def poison_gradient(run: Any) -> None:
    """The embedding of the token is NaN."""
    for chunk in run.model_chunks:
        chunk.module.embedding.register_forward_hook(
            lambda module, inputs, kwargs, output: output * (math.nan if _is_bad(kwargs) else 1.0), with_kwargs=True
        )


def poison_loss(run: Any) -> None:
    """The losses of the token's sample are high."""
    for chunk in run.model_chunks:
        chunk.module.register_forward_hook(
            lambda module, inputs, kwargs, output: output + (100.0 if _is_bad(kwargs) else 0.0), with_kwargs=True
        )


def poison_weights(run: Any) -> None:
    """The update after the token leaves a weight that is not finite, while loss and gradient are numbers."""
    seen = []
    step = run.optimizer.step_with_ready_grads
    for chunk in run.model_chunks:
        chunk.module.register_forward_pre_hook(
            lambda module, inputs, kwargs: seen.append(_is_bad(kwargs)),
            with_kwargs=True,
        )

    def spoil() -> Any:
        done = step()
        flag = torch.tensor([int(any(seen) and module_is_training(run))])
        torch.distributed.all_reduce(flag)
        seen.clear()
        if flag.item():
            with torch.no_grad():
                next(run.model_chunks[0].parameters()).fill_(math.inf)
                for group in run.optimizer.param_groups:
                    for parameter in group["params"]:
                        parameter.fill_(math.inf)
        return done

    run.optimizer.step_with_ready_grads = spoil


def module_is_training(run: Any) -> bool:
    return bool(run.model_chunks[0].training)


def _is_bad(kwargs: dict[str, Any]) -> bool:
    return bool((kwargs["input_ids"] == POISON).any())


def pass_over(run: Any, samples: list[list[int]]) -> None:
    run.state.trajectory.pass_over([range(first, end) for first, end in samples])


def one_run(folder: str, poison: str | None, passed: list[list[int]], sections: dict[str, Any]) -> dict[str, Any]:
    arguments = [*write_job_once(Path(folder)), *(f"--{name}={value}" for name, value in sections.items())]
    changes = [functools.partial(pass_over, samples=passed)] if passed else []
    if poison is not None:
        changes.append(globals()[poison])
    return train(arguments, lambda run: [change(run) for change in changes] and None)


def write_job_once(folder: Path) -> list[str]:
    return ["--config", str(folder / "job.yaml")]


def run(folder: Path, poison: str | None = None, passed: list[list[int]] | None = None, **sections: Any) -> Any:
    folder.mkdir(exist_ok=True)
    write_job(folder)
    named = {name.replace("__", "."): value for name, value in sections.items()}
    results = run_distributed(one_run, 2, str(folder), poison, passed or [], named)
    for result in results[1:]:
        assert {**result, "weights": None} == {**results[0], "weights": None}
    return results[0]


def test_by_default_the_run_ends_and_the_checkpoints_stay(tmp_path: Path) -> None:
    result = run(tmp_path, "poison_gradient")
    assert "not finite" in result["error"] and "healing.nonfinite rollback" in result["error"]
    (incident,) = records(tmp_path, "incident")
    assert incident["action"] == "stop" and incident["step"] == result["step"]
    web = [part for part in incident["documents"] if part["component"] == "web/maths"]
    assert POISONED_DOCUMENT in web[0]["documents"]
    latest = (tmp_path / "run" / "latest").read_text(encoding="utf-8").strip()
    assert latest == f"step_{(result['step'] - 1) // 3 * 3:08d}"


def test_a_step_that_is_not_finite_is_left_out(tmp_path: Path) -> None:
    result = run(tmp_path, "poison_gradient", training__fail_on_nan=False)
    assert (result["error"], result["step"]) == ("", NUM_STEPS)
    assert all(math.isfinite(weight) for weight in result["weights"])
    incidents = records(tmp_path, "incident")
    assert incidents and {incident["action"] for incident in incidents} == {"skip"}
    assert [record["step"] for record in records(tmp_path, "step")] == list(range(1, NUM_STEPS + 1))


@pytest.mark.parametrize("poison", ["poison_gradient", "poison_loss", "poison_weights"])
def test_a_rollback_equals_a_run_that_never_read_the_samples(tmp_path: Path, poison: str) -> None:
    healing = {
        "training__fail_on_nan": False, "healing__nonfinite": "rollback", "healing__spike": "rollback",
        "healing__window_steps": 8, "healing__threshold": 30.0,
    }  # fmt: skip
    healed = run(tmp_path / "healed", poison, **healing)
    assert healed["error"] == ""
    incidents = records(tmp_path / "healed", "incident")
    assert incidents and {incident["action"] for incident in incidents} == {"rollback"}
    passed = [samples for incident in incidents for samples in incident["samples"]]
    clean = run(tmp_path / "clean", None, passed)
    assert healed["weights"] == clean["weights"]
    assert healed["consumed_samples"] == clean["consumed_samples"]
    healed_steps, clean_steps = records(tmp_path / "healed", "step"), records(tmp_path / "clean", "step")
    assert [r["step"] for r in healed_steps] == list(range(1, healed["step"] + 1)), "each step stands there once"
    assert [r["loss"] for r in healed_steps] == [r["loss"] for r in clean_steps]


def test_weights_that_are_not_finite_are_never_saved(tmp_path: Path) -> None:
    """Defect 4: `latest` named a checkpoint of NaN weights, and the good ones were pruned."""
    for number, fail_on_nan in enumerate((True, False)):
        folder = tmp_path / str(number)
        result = run(folder, "poison_weights", training__fail_on_nan=fail_on_nan, checkpoint__save_interval_steps=1)
        assert "holds NaN or infinity" in result["error"]
        latest = (folder / "run" / "latest").read_text(encoding="utf-8").strip()
        again = run(folder, training__train_steps=int(latest[-8:]))
        assert all(math.isfinite(weight) for weight in again["weights"])


def test_a_run_without_end_of_bad_steps_ends(tmp_path: Path) -> None:
    """Defect 4: 15 steps were skipped in a row, and the run ended with status 0."""
    result = run(tmp_path, "poison_everything", training__fail_on_nan=False, healing__max_in_a_row=3)
    assert "healing.max_in_a_row: 4" in result["error"]
    assert result["step"] == 4


def poison_everything(run: Any) -> None:
    """Every loss of a step is NaN, while held-out text has losses."""
    for chunk in run.model_chunks:
        chunk.module.embedding.register_forward_hook(
            lambda module, inputs, output: output * (math.nan if module.training else 1.0)
        )
