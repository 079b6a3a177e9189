"""Synthesis jobs for tests: snippets out of nothing, and a toy task.

    python -m tests.helpers.synthesis CONFIG.json [DIE_AT]

takes part in the job of a configuration, as `tools/synthesize.py run` does in one with prompts; and kills itself at its
DIE_AT-th call that changes a file.
"""

from __future__ import annotations

import itertools
import json
import logging
import os
import signal
import sys
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from megatron_synE.command_line import run_tool
from megatron_synE.config.synthesis import (
    BudgetConfig,
    EndpointConfig,
    PaceConfig,
    PricesConfig,
    SamplingConfig,
    SynthesisConfig,
)  # fmt: skip
from megatron_synE.synthesis.folder import JobFolder, durable_file
from megatron_synE.synthesis.request import request_seed
from megatron_synE.synthesis.run import Ending, run_job
from megatron_synE.synthesis.status import job_status
from megatron_synE.synthesis.task import Accepted, ContentError, Rejected, Snippet, Task
from tests.helpers.fault_server import MODEL, answer_text

KINDS = ("toy", "other")
PRICES = PricesConfig(prompt_per_million=1.0, completion_per_million=2.0)


@dataclass(frozen=True)
class ToyTask:
    """Takes the answers of the fault server."""

    kind: str
    fingerprint: str = "1"

    def messages(self, snippet: Snippet) -> list[dict[str, str]]:
        return [{"role": "user", "content": f"{self.kind} {self.fingerprint}: {snippet.text}"}]

    def judge(self, snippet: Snippet, answer: str, finish_reason: str) -> Accepted | Rejected:
        if finish_reason == "length" or not answer.endswith("END"):
            raise ContentError("cut by length" if finish_reason == "length" else "unparsable")
        if snippet.text.endswith("7"):
            return Rejected("ends in 7")
        return Accepted({"text": answer})


@dataclass(frozen=True)
class ToyTasks:
    """Snippets of discipline `other` are for the other kind."""

    tasks: tuple[ToyTask, ...] = tuple(ToyTask(kind) for kind in KINDS)

    def kinds(self) -> Sequence[Task]:
        return self.tasks

    def of(self, snippet: Snippet) -> Task:
        return self.tasks[KINDS.index(str(snippet.discipline))]


def prepare(root: Path, num_snippets: int, shard_rows: int = 100) -> JobFolder:
    """A job's snippets; every third is for the kind `other`."""
    folder = JobFolder(root)
    for shard in range(-(-num_snippets // shard_rows)):
        with durable_file(folder.snippets(shard)) as file:
            for number in range(shard * shard_rows, min((shard + 1) * shard_rows, num_snippets)):
                row = {"id": f"web:{number}:0-10", "text": f"text {number}", "source": {"corpus": "web"},
                       "discipline": KINDS[number % 3 == 0], "language": "en"}  # fmt: skip
                file.write(json.dumps(row).encode() + b"\n")
    with durable_file(folder.manifest) as file:
        file.write(json.dumps({"num_snippets": num_snippets, "shard_rows": shard_rows}).encode())
    return folder


def config(root: Path, url: str, **changes: dict[str, Any]) -> SynthesisConfig:
    """A job against a server of this machine, quick to try again; `changes` by section."""
    kinds = {"endpoint": EndpointConfig, "sampling": SamplingConfig, "pace": PaceConfig, "prices": PricesConfig,
             "budget": BudgetConfig}  # fmt: skip
    values: dict[str, dict[str, Any]] = {
        "endpoint": {"base_url": url, "model": MODEL, "api_key_variable": None, "timeout_seconds": 20.0},
        "pace": {"window": 32, "tries": 1000, "attempts": 3, "backoff_seconds": 0.005, "max_backoff_seconds": 0.02},
    }
    sections = {name: kind(**{**values.get(name, {}), **changes.get(name, {})}) for name, kind in kinds.items()}
    return SynthesisConfig(job=str(root), **sections)


def write_config(path: Path, job: SynthesisConfig) -> Path:
    """For a process of `main`."""
    sections = {name: asdict(getattr(job, name)) for name in ("endpoint", "sampling", "pace", "prices", "budget")}
    path.write_text(json.dumps({"job": job.job, **sections}))
    return path


def rows_of(folder: JobFolder) -> list[dict[str, Any]]:
    """All rows of finished shards, as they lie there."""
    files = sorted((folder.root / "results").glob("*.jsonl"))
    return [json.loads(line) for file in files for line in file.read_text().splitlines()]


def result_files(folder: JobFolder) -> dict[str, bytes]:
    """Name → content of all finished files."""
    return {path.name: path.read_bytes() for path in sorted((folder.root / "results").iterdir())}


def check_ledger(folder: JobFolder, num_snippets: int, *, attempts: int = 3) -> Counter[tuple[str, str]]:
    """Every snippet once and in order; each accepted document is the server's sound answer; sums are those of rows."""
    rows = rows_of(folder)
    assert [row["id"] for row in rows] == [f"web:{number}:0-10" for number in range(num_snippets)]
    for number, row in enumerate(rows):
        text = f"{row['kind']} 1: text {number}"
        seeds = [request_seed(row["identity"], attempt) for attempt in range(attempts)]
        sound = [answer_text([{"role": "user", "content": text}], seed) for seed in seeds]
        assert row["outcome"] != "accepted" or row["document"]["text"] in sound
        assert ("document" in row) == (row["outcome"] == "accepted")
        assert row["usage"] == {"prompt_tokens": 10 * row["attempts"], "completion_tokens": 20 * row["attempts"]}
    status = job_status(folder, PRICES)
    total = status.rows.total()
    assert (status.to_do, total.settled, status.owners) == (0, num_snippets, {})
    assert total.counts["answers"] == sum(row["attempts"] for row in rows)
    return Counter((row["outcome"], row["reason"]) for row in rows)


def die_at(number: int) -> None:
    """Kill this process before its so many-th call that changes a file."""
    calls = itertools.count(1)

    def deadly(function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **options: Any) -> Any:
            if next(calls) == number:
                os.kill(os.getpid(), signal.SIGKILL)
            return function(*arguments, **options)

        return call

    for name in ("write", "pwrite", "fsync", "replace", "link", "unlink"):
        setattr(os, name, deadly(getattr(os, name)))


def main(argv: list[str]) -> int:
    """One process of a job."""
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    content = json.loads(Path(argv[0]).read_text())
    if len(argv) > 1:
        die_at(int(argv[1]))

    def body() -> None:
        root, url = Path(content.pop("job")), content["endpoint"]["base_url"]
        print(run_job(config(root, url, **content), ToyTasks()))

    return run_tool("synthesis", body)


def run_toy(job: SynthesisConfig, tasks: ToyTasks | None = None, **options: Any) -> Ending:
    """Take part in a job in this process."""
    return run_job(job, tasks or ToyTasks(), **options)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
