"""A run that is killed and started again goes on as if nothing had happened: the losses are the same bits."""

from __future__ import annotations

import json
import subprocess
import time
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.helpers.commands import environment, pretrain, tokenised_sample, torchrun

STEPS = 24
SAVE_INTERVAL = 4
PROCESSES = 4


def records(run: Path, kind: str = "step") -> dict[int, dict[str, Any]]:
    path = run / "metrics.jsonl"
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    found = [json.loads(line) for line in lines if line.endswith("}")]
    return {record["step"]: record for record in found if record["kind"] == kind}


@pytest.fixture(scope="module")
def arguments(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    folder = tmp_path_factory.mktemp("corpora")
    prefixes = tokenised_sample(folder, "web_en", "web_zh")
    job = {
        "model": {"preset": "llama3_tiny", "num_layers": 2},
        "parallel": {"tensor_model_parallel_size": 2, "sequence_parallel": True},
        "data": {
            "seq_length": 128,
            "heldout_fraction": 0.05,
            "sources": {name: {"prefix": str(prefix), "language": name[-2:]} for name, prefix in prefixes.items()},
            "stages": [{"name": "one", "tokens": 128 * 8 * STEPS, "weights": {"web_en": 0.75, "web_zh": 0.25}}],
        },
        "optimizer": {"lr": 1e-3},
        "schedule": {"warmup_steps": 3, "decay_steps": 4},
        "training": {"micro_batch_size": 2, "global_batch_size": 8},
        "checkpoint": {"save_interval_steps": SAVE_INTERVAL},
        "evaluation": {"at_start": False, "at_end": False},
        "logging": {"tensorboard": False},
    }
    file = folder / "job.yaml"
    file.write_text(json.dumps(job), encoding="utf-8")  # JSON is YAML
    return ["--config", str(file)]


def kill_after_step(run: Path, command: list[str], step: int) -> None:
    """Start, and kill -9 the launcher and its workers once the step is logged."""
    process = subprocess.Popen(command, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    deadline = time.monotonic() + 200
    try:
        while step not in records(run):
            assert process.poll() is None, process.stdout.read().decode()  # type: ignore[union-attr]
            assert time.monotonic() < deadline, "the run makes no progress"
            time.sleep(0.02)
    finally:
        for victim in [*psutil.Process(process.pid).children(recursive=True), process]:
            victim.kill()
        process.communicate()


@pytest.mark.slow
def test_killed_and_resumed_losses_are_the_same_bits(arguments: list[str], tmp_path: Path) -> None:
    straight, killed = tmp_path / "straight", tmp_path / "killed"
    done = pretrain(PROCESSES, *arguments, "--checkpoint.save", straight)
    assert done.returncode == 0, done.stderr
    kill_after_step(killed, torchrun(PROCESSES, *arguments, "--checkpoint.save", str(killed)), SAVE_INTERVAL + 1)
    assert max(records(killed)) < STEPS, "the run had ended before it was killed"
    done = pretrain(PROCESSES, *arguments, "--checkpoint.save", killed)
    assert done.returncode == 0, done.stderr
    assert "resuming after step" in done.stdout

    expected, resumed = records(straight), records(killed)
    assert sorted(resumed) == sorted(expected) == list(range(1, STEPS + 1))
    for step in expected:
        for name in ("loss", "loss_by_component", "grad_norm", "learning_rate", "consumed_tokens"):
            assert resumed[step][name] == expected[step][name], f"step {step}: {name}"
    assert expected[STEPS]["loss"] < expected[1]["loss"] - 0.3


@pytest.mark.slow
def test_a_run_told_to_stop_saves_and_goes_on_at_another_layout(arguments: list[str], tmp_path: Path) -> None:
    run = tmp_path / "run"
    first = pretrain(1, *arguments, "--checkpoint.save", run, "--training.exit_after_steps", "5",
                     "--parallel.tensor_model_parallel_size", "1", "--parallel.sequence_parallel", "false")  # fmt: skip
    assert first.returncode == 0, first.stderr
    assert "stopped after step 5 of 24" in first.stdout
    assert (run / "latest").read_text(encoding="utf-8").strip() == "step_00000005"
    second = pretrain(2, *arguments, "--checkpoint.save", run)
    assert second.returncode == 0, second.stderr
    assert sorted(records(run)) == list(range(1, STEPS + 1))
    third = pretrain(2, *arguments, "--checkpoint.save", run)
    assert third.returncode == 0, third.stderr
    assert sorted(records(run)) == list(range(1, STEPS + 1)), "a finished run has nothing left to do"
