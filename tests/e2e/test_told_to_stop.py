"""Signals, dead launchers, second starts and stopped processes: a real run of two ranks ends properly, and says why."""

from __future__ import annotations

import json
import re
import signal
import time
from pathlib import Path

import pytest

from tests.helpers.commands import pretrain, tokenised_sample
from tests.helpers.processes import Training, records, training

STEPS = 5000
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def arguments(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    folder = tmp_path_factory.mktemp("corpora")
    prefix = tokenised_sample(folder, "web_en")["web_en"]
    job = {
        "model": {"preset": "llama3_tiny", "num_layers": 1},
        "data": {
            "seq_length": 64,
            "sources": {"web": {"prefix": str(prefix)}},
            "stages": [{"name": "one", "tokens": 64 * 8 * STEPS, "weights": {"web": 1}}],
        },
        "training": {"micro_batch_size": 2, "global_batch_size": 8},
        "checkpoint": {"save_interval_steps": 20, "keep": 2},
        "evaluation": {"at_start": False, "at_end": False},
        "logging": {"tensorboard": False},
    }
    file = folder / "job.yaml"
    file.write_text(json.dumps(job), encoding="utf-8")  # JSON is YAML
    return ["--config", str(file)]


def saved_step(run: Path) -> int:
    return int((run / "latest").read_text().removeprefix("step_"))


def stopped_properly(started: Training, name: str) -> str:
    """Checks that the run said one line, saved, and left nothing; returns stderr."""
    _, out, err = started.end()
    assert err.count("pretrain_llama3_synE: ") == 1 and f"{name}: stopping after this step" in err, err
    assert "KeyboardInterrupt" not in err
    step = saved_step(started.run)
    assert f"stopped after step {step} of {STEPS}" in out
    assert max(records(started.run)) == step, "all that was done is saved"
    assert [path.name for path in started.run.iterdir() if path.name.startswith(".")] == []
    return err


@pytest.mark.parametrize(
    "target, number, name",
    [
        ("1", signal.SIGTERM, "SIGTERM"),
        ("agent", signal.SIGINT, "SIGINT"),
        ("agent", signal.SIGUSR1, "the launcher is gone"),
        ("agent", signal.SIGKILL, "the launcher is gone"),
    ],
)
def test_told_while_training(arguments: list[str], tmp_path: Path, target: str, number: int, name: str) -> None:
    with training(2, tmp_path / "run", *arguments) as started:
        started.wait_for_step(2)
        started.signal(target, signal.Signals(number))
        err = stopped_properly(started, name)
    if target == "1":
        assert started.process.returncode == 0 and len(err.splitlines()) == 1


def test_told_during_start_up_it_ends_before_its_first_step(arguments: list[str], tmp_path: Path) -> None:
    run = tmp_path / "run"
    with training(2, run, *arguments) as started:
        started.wait_for_library(1, "torch").send_signal(signal.SIGINT)
        status, _, err = started.end()
    assert err.count("pretrain_llama3_synE: ") == 1 and "SIGINT: stopping before the first step" in err, err
    assert status == 0 and records(run) == {} and not (run / "latest").exists()


def test_a_long_step_is_dropped(arguments: list[str], tmp_path: Path) -> None:
    """The first step counts as long. Of this one 2,000 micro-batches would still be to come."""
    run = tmp_path / "run"
    long = ["--training.global_batch_size", "4096", "--training.micro_batch_size", "1", "--model.num_layers", "24"]
    stage = {"name": "one", "tokens": 64 * 4096 * 2, "weights": {"web": 1}}
    with training(2, run, *arguments, *long, "--data.stages", json.dumps([stage])) as started:
        started.wait_for_line("layers")
        time.sleep(2)  # the step begins; where a slow machine is not there yet, the run ends before it
        started.wait_for_rank(0).send_signal(signal.SIGTERM)
        status, _, err = started.end()
    assert status == 0 and len(err.splitlines()) == 1 and "SIGTERM: stopping" in err, err
    assert records(run) == {} and not (run / "latest").exists()


def test_a_second_start_is_refused_and_changes_nothing(arguments: list[str], tmp_path: Path) -> None:
    run = tmp_path / "run"
    with training(2, run, *arguments) as first:
        first.wait_for_step(2)
        second = pretrain(2, *arguments, "--checkpoint.save", run)
        assert second.returncode == 1
        refusal = f"checkpoint.save: {run} is in use by host "
        told = re.findall(rf"^pretrain_llama3_synE(?: \(process 1\))?: {re.escape(refusal)}", second.stderr, re.M)
        assert len(told) == 1
        assert "Traceback" not in re.split(r"^[WE]\d{4} ", second.stderr, flags=re.M)[0], "the rest is torchrun's"
        root_cause = second.stderr.split("Root Cause")[1]
        assert refusal in root_cause, "torchrun names it too"
        first.signal("0", signal.SIGTERM)
        stopped_properly(first, "SIGTERM")
    assert sorted(records(run)) == list(range(1, saved_step(run) + 1))


def test_a_stopped_process_is_named_and_the_run_ends(arguments: list[str], tmp_path: Path) -> None:
    run = tmp_path / "run"
    with training(2, run, *arguments, "--parallel.hang_timeout_minutes", "0.25",
                  launcher=("--shutdown-timeout=2",)) as started:  # fmt: skip
        started.wait_for_step(2)
        victim = started.wait_for_rank(1)
        victim.suspend()
        status, _, err = started.end()
    assert status == 1
    assert err.count("the run stands still: process 1 (host ") == 2, "once by us, once in torchrun's report"
    assert f"pid {victim.pid}, stopped)" in err and "exitcode  : 75" in err
    stacks = (run / "hang-rank0.txt").read_text()
    # It waits in the step, or after it, where the processes agree whether to stop.
    assert "process 0" in stacks and ("in train_step" in stacks or "in anywhere" in stacks), stacks
    assert not (run / "hang-rank1.txt").exists()
    again = pretrain(2, *arguments, "--checkpoint.save", run, "--training.exit_after_steps", "1")
    assert again.returncode == 0, again.stderr


def test_torchrun_restarts_after_a_killed_process_and_the_losses_are_the_same_bits(
    arguments: list[str], tmp_path: Path
) -> None:
    straight, killed = tmp_path / "straight", tmp_path / "killed"
    short = [*arguments, "--training.train_steps", "60"]
    done = pretrain(2, *short, "--checkpoint.save", straight)
    assert done.returncode == 0, done.stderr
    with training(2, killed, *short, launcher=("--max-restarts=1",)) as started:
        started.wait_for_step(25)
        started.signal("1", signal.SIGKILL)
        status, out, err = started.end()
    assert status == 0 and "resuming after step" in out, err
    assert err.count("pretrain_llama3_synE: process 1 of this run has died") == 1
    expected, restarted = ({step: r["loss"] for step, r in records(run).items()} for run in (straight, killed))
    assert restarted == expected and len(expected) == 60
