"""`tools/synthesize.py run` and `status` as a user runs them, against a server that answers nonsense."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from tests.helpers.commands import ROOT, SAMPLE, environment, run_tool, succeeded
from tests.helpers.fault_server import MODEL, Behaviour, FaultServer, fault_server


def job_file(folder: Path, server: FaultServer) -> Path:
    """A job of 40 snippets of the shipped sample."""
    source = {"inputs": [str(SAMPLE / "web_en.jsonl")], "tokenizer": str(SAMPLE / "tokenizer"), "discipline": "physics"}
    content = {
        "job": str(folder / "job"),
        "snippets": {"sources": {"web": source}, "max_snippets": 40, "shard_rows": 16, "min_tokens": 16},
        "endpoint": {"base_url": server.url, "model": MODEL, "api_key_variable": "TOY_KEY"},
        "pace": {"window": 8, "attempts": 1},
        "prices": {"prompt_per_million": 100_000, "completion_per_million": 200_000},
    }
    path = folder / "job.yaml"
    path.write_text(yaml.safe_dump(content))
    return path


def start(job: list[str | Path]) -> subprocess.Popen[str]:
    """A run that the test has something to do with."""
    command = [sys.executable, str(ROOT / "tools" / "synthesize.py"), "run", *map(str, job)]
    return subprocess.Popen(command, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def wait_for_requests(process: subprocess.Popen[str], server: FaultServer) -> None:
    """Until the server has some of it in its hands."""
    while not server.in_flight:
        assert process.poll() is None
        time.sleep(0.01)


@pytest.mark.slow
def test_a_job_runs_stops_and_goes_on_and_its_ledger_closes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TOY_KEY", "sk-toy")
    with fault_server(Behaviour(key="sk-toy")) as server:
        job = ["--config", job_file(tmp_path, server)]
        first = succeeded(run_tool("synthesize", "run", *job, "--budget.cost", "20"))
        assert "stopped at the budget of 20 USD; the same command goes on" in first.stdout
        num_paid = sum(server.paid.values())
        assert 3 <= num_paid < 40  # an answer costs 5 USD

        process = start(job)
        server.behaviour.latency_seconds = 0.3
        wait_for_requests(process, server)
        os.kill(process.pid, signal.SIGTERM)
        out, err = process.communicate(timeout=60)
        assert process.returncode == 128 + signal.SIGTERM, err
        assert "stopped by SIGTERM; the same command goes on" in out
        assert len(server.paid) == sum(server.paid.values()) < 40

        server.behaviour.latency_seconds = 3600.0  # what is in flight stays so
        process = start(job)
        wait_for_requests(process, server)
        os.kill(process.pid, signal.SIGTERM)
        assert process.stderr is not None
        assert process.stderr.readline() == "SIGTERM: waiting for the answers in flight; again to leave at once\n"
        os.kill(process.pid, signal.SIGTERM)
        process.communicate(timeout=60)
        assert process.returncode == 128 + signal.SIGTERM

        server.behaviour.latency_seconds = 0.0
        done = succeeded(run_tool("synthesize", "run", *job))
    assert "40 snippets = 0 accepted + 0 rejected + 40 failed + 0 to do\n3 of 3 shards finished" in done.stdout
    status = json.loads(succeeded(run_tool("synthesize", "status", "--json", *job)).stdout)
    assert (status["to_do"], status["finished_shards"], status["cost"]) == (0, 3, 40 * 5.0)
    assert status["kinds"]["physics.en"]["failed"] == 40 and status["owners"] == {}
    assert set(server.paid.values()) == {1}
    written = b"".join(path.read_bytes() for path in tmp_path.rglob("*") if path.is_file())
    assert b"sk-toy" not in written and "sk-toy" not in first.stdout + first.stderr + done.stdout + done.stderr


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["run", "--endpoint.api_key_variable", "NO_SUCH_KEY"], "NO_SUCH_KEY is not set; export it"),
        (["run", "--endpoint.modle", "x"], "--endpoint.modle: unknown; did you mean --endpoint.model?"),
        (["run", "--endpoint.base_url", "localhost"], "endpoint.base_url: 'localhost' is no URL"),
        (["run", "--snippets.sources.web.inputs", "[nowhere.jsonl]"], "nowhere.jsonl"),
        (["status"], "holds no snippets yet; start the job with `synthesize.py run`"),
    ],
)
def test_a_mistake_is_one_message(arguments: list[str], message: str, tmp_path: Path) -> None:
    with fault_server() as server:
        command, *options = arguments
        told = run_tool("synthesize", command, "--config", job_file(tmp_path, server), *options)
    assert told.returncode == 1 and told.stdout == ""
    assert message in told.stderr and "Traceback" not in told.stderr, told.stderr
