"""examples/llama3_8b/pretrain.slurm on a real Slurm: two nodes, told to stop, back in the queue, resumed to the end."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import psutil
import pytest
import yaml

from tests.helpers.commands import ROOT, environment, run, tokenised_sample
from tests.helpers.slurm import Cluster, free_ports, running_cluster, why_not

SCRIPT = ROOT / "examples" / "llama3_8b" / "pretrain.slurm"
NUM_STEPS = 60
TIMEOUT_S = 150


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    reason = why_not()
    if reason is not None:
        pytest.skip(reason)
    with running_cluster(tmp_path_factory.mktemp("slurm")) as running:
        yield running


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder that the configuration's relative paths start from."""
    folder = tmp_path_factory.mktemp("data")
    tokenised_sample(folder / "corpora", "book_en")
    job = {
        "model": {"preset": "llama3_tiny", "num_layers": 1},
        "parallel": {"tensor_model_parallel_size": 2},
        "precision": {"dtype": "fp32"},
        "data": {
            "seq_length": 64,
            "sources": {"book": {"prefix": "corpora/book_en_text_document"}},
            "stages": [{"name": "only", "tokens": NUM_STEPS * 4 * 64, "weights": {"book": 1}}],
        },
        "training": {"global_batch_size": 4},
        "evaluation": {"at_start": False, "at_end": False},
        "checkpoint": {"save": "run"},
        "logging": {"tensorboard": False},
    }
    (folder / "job.yaml").write_text(yaml.safe_dump(job))
    return folder


def submit(cluster: Cluster, data: Path, *arguments: str, options: tuple[str, ...] = (), **variables: str) -> str:
    """Submit the script for two CPU nodes; the job's number."""
    settings = {
        "DATA": str(data),
        "CONFIG": str(data / "job.yaml"),
        "PROCESSES_PER_NODE": "1",
        "MASTER_ADDR": "127.0.0.1",  # the nodes' names are not in any name service
        "MASTER_PORT": str(free_ports(1)[0]),
        "VENV": sys.prefix,
        **{name: environment()[name] for name in ("PATH", "TOKENIZERS_PARALLELISM")},
        **variables,
    }
    common = ["--parsable", "--nodes=2", "--gpus-per-node=0", "--cpus-per-task=1", f"--output={data}/job-%j.log"]
    return cluster.command("sbatch", *common, *options, SCRIPT, *arguments, cwd=ROOT, **settings).strip()


def logged_steps(data: Path, run: str = "run") -> list[int]:
    path = data / run / "metrics.jsonl"
    lines = path.read_text().splitlines() if path.exists() else []
    return [record["step"] for record in map(json.loads, lines) if record["kind"] == "step"]


def wait_until_ended(cluster: Cluster, number: str, log: Path) -> dict[str, str]:
    deadline = time.monotonic() + TIMEOUT_S
    while (job := cluster.job(number))["JobState"] not in {"COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL"}:
        assert time.monotonic() < deadline, f"the job did not end in {TIMEOUT_S} s: {job}\n{log.read_text()}"
        time.sleep(0.3)
    return job


def test_saves_before_the_limit_goes_back_into_the_queue_and_resumes(cluster: Cluster, data: Path) -> None:
    number = submit(cluster, data)
    log = data / f"job-{number}.log"
    deadline = time.monotonic() + TIMEOUT_S
    while len(logged_steps(data)) < 3:
        state = cluster.job(number)["JobState"]
        assert state in {"PENDING", "CONFIGURING", "RUNNING"} and time.monotonic() < deadline, log.read_text()
        time.sleep(0.1)
    # What Slurm itself does `--signal=B:USR1@600` before the time limit; a test cannot wait for that.
    cluster.command("scancel", "--batch", "--signal=USR1", number)
    job = wait_until_ended(cluster, number, log)
    output = log.read_text()
    assert job["JobState"] == "COMPLETED" and job["Restarts"] == "1", output
    assert "back into the queue" in output and "resuming after step" in output
    assert "2 x 1 processes" in output and "TP 2" in output
    assert logged_steps(data) == list(range(1, NUM_STEPS + 1))


def test_told_during_start_up_it_goes_back_into_the_queue(cluster: Cluster, data: Path) -> None:
    """No instant of the start-up loses the signal: a process that does not hear it yet is told again."""
    number = submit(cluster, data, "--checkpoint.save", "told-early", REPEAT_SECONDS="1")
    log = data / f"job-{number}.log"
    deadline = time.monotonic() + TIMEOUT_S
    while not ranks_of_job(number):
        assert time.monotonic() < deadline, log.read_text()
        time.sleep(0.02)
    cluster.command("scancel", "--batch", "--signal=USR1", number)
    job = wait_until_ended(cluster, number, log)
    output = log.read_text()
    assert job["JobState"] == "COMPLETED" and job["Restarts"] == "1", output
    assert output.count("2 x 1 processes") == 2, output
    first_start = output.split("back into the queue")[0]
    assert f"step {NUM_STEPS}/{NUM_STEPS}" not in first_start, "the signal stopped it long before its last step"
    assert logged_steps(data, "told-early") == list(range(1, NUM_STEPS + 1)), output


def test_cancelled_it_saves_first(cluster: Cluster, data: Path) -> None:
    """Preemption and the time limit send the same: SIGTERM to all processes, and SIGKILL after KillWait."""
    number = submit(cluster, data, "--checkpoint.save", "cancelled")
    log = data / f"job-{number}.log"
    deadline = time.monotonic() + TIMEOUT_S
    while len(logged_steps(data, "cancelled")) < 3:
        assert time.monotonic() < deadline, log.read_text()
        time.sleep(0.1)
    cluster.command("scancel", number)
    assert wait_until_ended(cluster, number, log)["JobState"] == "CANCELLED"
    while ranks_of_job(number):
        assert time.monotonic() < deadline
        time.sleep(0.1)
    output = log.read_text()
    assert output.count("SIGTERM: stopping after this step") == 1, output
    steps = logged_steps(data, "cancelled")
    assert (data / "cancelled" / "latest").read_text() == f"step_{steps[-1]:08d}\n"


def test_goes_on_without_a_node_that_fails(cluster: Cluster, data: Path) -> None:
    alone = ["--parallel.tensor_model_parallel_size", "1"]
    number = submit(
        cluster, data, "--checkpoint.save", "elastic", "--checkpoint.save_interval_steps", "5", *alone,
        options=("--no-kill",), ELASTIC="1",
    )  # fmt: skip
    log = data / f"job-{number}.log"
    deadline = time.monotonic() + TIMEOUT_S
    while len(logged_steps(data, "elastic")) < 7:
        assert time.monotonic() < deadline, log.read_text()
        time.sleep(0.05)
    for process in ranks_of_job(number, node="1", all_processes=True):
        process.kill()
    wait_until_ended(cluster, number, log)
    output = log.read_text()
    assert "DP 2" in output and "resuming after step" in output and "DP 1" in output, output
    assert logged_steps(data, "elastic") == list(range(1, NUM_STEPS + 1))
    undisturbed = run(
        sys.executable, ROOT / "pretrain_llama3_synE.py", "--config", "job.yaml", "--checkpoint.save", "undisturbed",
        *alone, cwd=data,
    )  # fmt: skip
    assert undisturbed.returncode == 0, undisturbed.stderr
    losses, expected = (losses_of(data / name) for name in ("elastic", "undisturbed"))
    assert losses == pytest.approx(expected, abs=1e-4), "the same documents in the same order"


def losses_of(run: Path) -> list[float]:
    lines = (run / "metrics.jsonl").read_text().splitlines()
    return [record["loss"] for record in map(json.loads, lines) if record["kind"] == "step"]


def ranks_of_job(number: str, node: str | None = None, all_processes: bool = False) -> list[psutil.Process]:
    """The trainer's processes of a job; with `all_processes` torchrun's too."""
    found = []
    for process in psutil.process_iter():
        with suppress(psutil.Error):
            variables = process.environ()
            if variables.get("SLURM_JOB_ID") != number or node not in (None, variables.get("SLURM_NODEID")):
                continue
            if "RANK" in variables or (all_processes and "SLURM_PROCID" in variables):
                found.append(process)
    return found


def test_a_job_that_fails_does_not_go_back_into_the_queue(cluster: Cluster, data: Path) -> None:
    number = submit(cluster, data, "--optimizer.learning_rate", "1")
    log = data / f"job-{number}.log"
    job = wait_until_ended(cluster, number, log)
    assert job["JobState"] == "FAILED" and job["Restarts"] == "0"
    assert "learning_rate" in log.read_text()
