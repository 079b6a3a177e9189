"""A run that forgets, as its user sees it: what it says, its exit status, and how it goes on."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from tests.helpers.commands import ROOT, pretrain, run, run_tool, succeeded
from tests.helpers.processes import records
from tests.helpers.small_job import GLOBAL_BATCH_SIZE, JOB_FILE, RUN, SEQ_LENGTH, STEPS, write_job

pytestmark = pytest.mark.slow


def test_the_run_stops_is_refused_and_goes_on_with_share_moved_back(tmp_path: Path) -> None:
    """Only the web is trained on: what the untrained model says of books becomes worse than chance."""
    stages = [{"name": "web", "tokens": STEPS * GLOBAL_BATCH_SIZE * SEQ_LENGTH, "weights": {"web": 1, "book": 0}}]
    write_job(
        tmp_path, measured=False, optimizer={"lr": 0.1},
        evaluation={"interval_steps": 5, "guard": {"max_loss_increase": {"default": 0.1}, "reaction": "stop"}},
    )  # fmt: skip
    command = ["--config", JOB_FILE, "--data.stages", json.dumps(stages)]
    stopped = pretrain(2, *command, cwd=tmp_path)
    said = "evaluation.guard: after step 5 the run has forgotten more than it may: loss of book"
    own, _, root_cause = stopped.stderr.partition("Root Cause")
    assert stopped.returncode == 1 and own.count(said) == 1 and said in root_cause, own
    assert "FORGETTING at step 5: loss of book" in stopped.stdout
    assert (tmp_path / RUN / "latest").read_text(encoding="utf-8").strip() == "step_00000005"

    refused = run(sys.executable, ROOT / "pretrain_llama3_synE.py", "--dry_run", *command, cwd=tmp_path)
    assert refused.returncode == 1
    assert f"the run would not start:\n{said}" in refused.stderr

    restore = ["--evaluation.guard.reaction", "restore_share", "--evaluation.guard.restore.step", "0.3"]
    succeeded(pretrain(2, *command, *restore, "--training.exit_after_steps", "6", cwd=tmp_path))
    moved = records(tmp_path / RUN, "decision")
    assert moved[10]["moves"] == "sources" and moved[10]["shares_after"] == {"web": 0.7, "book": 0.3}
    assert "book" in records(tmp_path / RUN)[11]["loss_by_component"]
    plan = succeeded(run_tool("inspect_stream", *command, "--checkpoint", RUN, cwd=tmp_path)).stdout
    assert "shares of the sources moved at sample 40: web 1.0000 → 0.7000, book 0.0000 → 0.3000" in plan
