"""Benchmarks of a real run: at step 0, in between and at the end; over a stop and a resume; what is refused."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from tests.helpers.benchmark_data import write_benchmarks
from tests.helpers.commands import ROOT, pretrain, run, succeeded, tokenised_sample
from tests.helpers.verdicts import own_messages

pytest.importorskip("lm_eval")
pytestmark = pytest.mark.slow
STEPS = 6


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Corpora, benchmarks and a job that measures two of them."""
    folder = tmp_path_factory.mktemp("benchmarks")
    prefix = tokenised_sample(folder, "web_en")["web_en"]
    write_benchmarks(folder / "data", 12)
    job = {
        "model": {"preset": "llama3_tiny", "num_layers": 2},
        "precision": {"dtype": "fp32"},
        "data": {
            "seq_length": 64,
            "sources": {"web": {"prefix": str(prefix)}},
            "stages": [{"name": "one", "tokens": 64 * 8 * STEPS, "weights": {"web": 1}}],
        },
        "optimizer": {"lr": 1e-3},
        "training": {"micro_batch_size": 2, "global_batch_size": 8},
        "checkpoint": {"save_interval_steps": 4},
        "evaluation": {
            "benchmarks": {
                "tasks": ["sciq", "scieval"], "data_dir": str(folder / "data"), "interval_steps": 2, "limit": 4,
            },
        },
    }  # fmt: skip
    (folder / "job.yaml").write_text(json.dumps(job), encoding="utf-8")  # JSON is YAML
    return folder


def train(folder: Path, name: str, *arguments: str, num_processes: int = 2) -> subprocess.CompletedProcess[str]:
    return pretrain(
        num_processes, "--config", folder / "job.yaml", "--checkpoint.save", folder / name, *arguments, cwd=folder
    )


def dry_run(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return run(
        "python", ROOT / "pretrain_llama3_synE.py", "--dry_run", "--config", folder / "job.yaml", "--checkpoint.save",
        folder / "none", *arguments, cwd=folder,
    )  # fmt: skip


def records(run: Path, kind: str = "benchmark") -> list[dict[str, Any]]:
    lines = (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    return [record for record in map(json.loads, lines) if record["kind"] == kind]


def test_a_run_that_stops_and_goes_on_measures_as_one_that_does_not(folder: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    whole = succeeded(train(folder, "whole"))
    found = records(folder / "whole")
    assert [record["step"] for record in found] == [0, 2, 4, 6]
    assert {task: values["num_items"] for task, values in found[0]["benchmarks"].items()} == {"sciq": 4, "scieval": 12}
    assert set(found[0]["benchmarks"]["sciq"]) == {"acc", "acc_norm", "acc_bytes", "num_items"}
    assert found[0]["consumed_samples"] == 0 and found[1]["consumed_tokens"] == 64 * 16
    assert [record["step"] for record in records(folder / "whole", "evaluation")] == [0, 6]
    assert "benchmarks: one <|begin_of_text|> (id " in whole.stderr
    table = whole.stdout.partition("step 6: benchmarks\n")[2].splitlines()
    assert " ".join(table[0].split()) == "acc since step 0 acc_norm since step 0 acc_bytes since step 0 items"
    assert [line.split()[0] for line in table[1:3]] == ["sciq", "scieval"] and table[2].split()[-1] == "12"
    events = EventAccumulator(str(folder / "whole" / "tensorboard"))
    events.Reload()
    curve = events.Scalars("benchmark/benchmarks/sciq/acc")
    assert [event.step for event in curve] == [0, 2, 4, 6]

    shutil.copytree(folder / "whole", folder / "stopped")  # as a kill after step 5 would leave it
    shutil.rmtree(folder / "stopped" / "step_00000006")
    (folder / "stopped" / "latest").unlink()
    requests = folder / "stopped" / "benchmark_requests"
    made = requests.stat().st_mtime_ns
    succeeded(train(folder, "stopped"))
    assert requests.stat().st_mtime_ns == made, "they are kept for the next start"
    expected = [[record[name] for name in ("step", "benchmarks")] for record in found]
    assert [[record[name] for name in ("step", "benchmarks")] for record in records(folder / "stopped")] == expected

    other = shutil.copytree(folder / "data", folder / "other")
    rows = json.loads((other / "sciq" / "test.json").read_text(encoding="utf-8"))
    rows[0]["question"] = "Another one?"
    (other / "sciq" / "test.json").write_text(json.dumps(rows), encoding="utf-8")
    changed = succeeded(train(folder, "stopped", "--evaluation.benchmarks.data_dir", str(other), num_processes=1))
    assert "changed since the checkpoint: evaluation.benchmarks.sciq.requests" in changed.stdout
    assert "scieval.requests" not in changed.stdout


def test_a_dry_run_tells_what_is_missing(folder: Path) -> None:
    said = dry_run(folder, "--evaluation.benchmarks.data_dir", ".")
    assert said.returncode == 1 and "Traceback" not in said.stderr
    lines = [line for line in said.stderr.splitlines() if "evaluation.benchmarks" in line]
    assert len(lines) == 2 and all("data is missing: put it at" in line for line in lines), lines
    assert not (folder / "none").exists()


def test_a_dry_run_tells_what_would_be_asked(folder: Path) -> None:
    said = succeeded(dry_run(folder))
    assert "note    benchmarks: one <|begin_of_text|> (id " in said.stdout and "the run would start" in said.stdout
    assert "note    benchmarks: sciq: 4 items, 16 requests of " in said.stdout
    assert not (folder / "none").exists()


def test_a_run_that_cannot_measure_does_not_begin(folder: Path) -> None:
    said = train(folder, "refused", "--evaluation.benchmarks.tasks", "[sciqq]")
    assert said.returncode == 1
    (message,) = own_messages(said.stderr)
    assert message.endswith("sciqq: there is no such task; did you mean sciq?")
    assert not list((folder / "refused").glob("step_*"))
