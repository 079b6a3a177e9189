"""A run that is resumed, changed and resumed again: its records, its position and what it says of changes."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from tests.helpers.distributed import run_distributed
from tests.helpers.runs import records, train, write_job

KINDS = ("step", "evaluation", "decision")
SAME = ("loss", "loss_by_component", "grad_norm", "learning_rate", "consumed_samples", "perplexity", "shares_after")


def several_starts(folder: str, starts: list[list[str]]) -> list[dict[str, Any]]:
    return [train(["--config", str(Path(folder) / "job.yaml"), *arguments]) for arguments in starts]


def run(folder: Path, *starts: list[str], **sections: Any) -> list[dict[str, Any]]:
    folder.mkdir(exist_ok=True)
    write_job(folder, **sections)
    return run_distributed(several_starts, 1, str(folder), list(starts) or [[]])[0]


def told(folder: Path) -> dict[str, list[dict[str, Any]]]:
    """The records of a run without times."""
    return {
        kind: [{"step": r["step"], **{name: r[name] for name in SAME if name in r}} for r in records(folder, kind)]
        for kind in KINDS
    }


def test_every_interruption_leaves_the_records_of_an_uninterrupted_run(tmp_path: Path) -> None:
    """Defect 10: evaluations and decisions stood twice after some interruptions, and at each start of a finished run.

    The run is put back to each of its checkpoints, as a kill would leave it: with records that lie beyond.
    """
    whole = tmp_path / "whole"
    (first,) = run(whole)
    expected = told(whole)
    assert len(expected["step"]) == first["step"] == 20
    assert len(expected["decision"]) >= 2 and len(expected["evaluation"]) > len(expected["decision"])
    for step in (3, 6, 9, 12, 18, 20):
        again = tmp_path / f"again-{step}"
        shutil.copytree(whole, again)
        for path in (again / "run").glob("step_*"):
            if int(path.name[5:]) > step:
                shutil.rmtree(path)
        (again / "run" / "latest").unlink()
        write_job(again)
        results = run(again, [], [])
        assert [result["first_step"] for result in results] == [step, 20]
        assert results[-1]["weights"] == first["weights"]
        assert told(again) == expected, f"resumed after step {step}"


@pytest.mark.parametrize("size", [4, 16])
def test_the_batch_size_may_change_at_a_resume(tmp_path: Path, size: int) -> None:
    """Defect 1."""
    results = run(
        tmp_path,
        ["--training.exit_after_steps", "8"],
        ["--training.global_batch_size", str(size), "--training.exit_after_steps", "2"],
        ["--training.global_batch_size", "8"],
    )
    assert [result["consumed_samples"] for result in results] == [64, 64 + 2 * size, 160]
    consumed = [record["consumed_samples"] for record in records(tmp_path, "step")]
    expected = [*range(8, 65, 8), 64 + size, 64 + 2 * size]
    assert consumed == expected + list(range(expected[-1] + 8, 161, 8))
    (change, back) = records(tmp_path, "configuration")
    assert change["changes"] == {"training.global_batch_size": [8, size]}
    assert back["changes"] == {"training.global_batch_size": [size, 8]}
    state = json.loads((tmp_path / "run" / f"step_{results[-1]['step']:08d}" / "state.json").read_text())
    assert [stretch[1:] for stretch in state["trajectory"]["stretches"]] == [[0, 8], [64, size], [64 + 2 * size, 8]]
    assert [entry["step"] for entry in state["config_changes"]] == [8, 10]


def test_a_ramp_goes_on_where_it_stood(tmp_path: Path) -> None:
    ramp = {"training": {"rampup_batch_size": [2, 2, 60]}}
    (straight,) = run(tmp_path / "straight", [], **ramp)
    stopped = run(tmp_path / "stopped", ["--training.exit_after_steps", "7"], [], **ramp)
    assert stopped[-1]["weights"] == straight["weights"]
    assert told(tmp_path / "stopped") == told(tmp_path / "straight")
    sizes = [record["global_batch_size"] for record in records(tmp_path / "straight", "step")]
    assert sizes[0] == 2 and sizes[-1] == 8 and sizes == sorted(sizes) and set(sizes) == {2, 4, 6, 8}


def test_changes_are_recorded_and_a_seed_of_the_data_is_refused(tmp_path: Path) -> None:
    """Defect 14."""
    run(tmp_path, ["--training.exit_after_steps", "4"], ["--optimizer.lr", "5e-4", "--training.seed", "7"])
    (record,) = records(tmp_path, "configuration")
    assert (record["step"], record["changes"]) == (4, {"optimizer.lr": [1e-3, 5e-4], "training.seed": [1234, 7]})
    with pytest.raises(AssertionError, match=r"data\.seed: 5, but the checkpoint shuffled with 1234"):
        run(tmp_path, ["--data.seed", "5"])
