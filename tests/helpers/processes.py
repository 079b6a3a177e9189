"""Runs of the trainer as processes that tests do things to: signals, kills, stops."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import psutil

from tests.helpers.commands import TIMEOUT_S, environment, torchrun


def records(run: Path, kind: str = "step") -> dict[int, dict[str, Any]]:
    """The run's records of a kind, by step."""
    path = run / "metrics.jsonl"
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    found = [json.loads(line) for line in lines if line.endswith("}")]
    return {record["step"]: record for record in found if record["kind"] == kind}


class Training:
    """A started trainer under torchrun."""

    def __init__(self, process: subprocess.Popen[str], run: Path) -> None:
        self.process = process
        self.run = run

    def wait_for_step(self, step: int) -> None:
        """Until the step is logged."""
        self._wait_until(lambda: step in records(self.run), f"step {step}")

    def wait_for_rank(self, rank: int) -> psutil.Process:
        """The process of a rank, once there is one."""
        self._wait_until(lambda: self._rank(rank) is not None, f"rank {rank}")
        found = self._rank(rank)
        assert found is not None
        return found

    def wait_for_line(self, words: str) -> None:
        """Until it prints them."""
        assert self.process.stdout is not None
        for line in self.process.stdout:
            if words in line:
                return
        raise AssertionError(f"ended before {words}: {self.process.communicate()}")

    def wait_for_library(self, rank: int, name: str) -> psutil.Process:
        """The process of a rank, once it has loaded a library with `name` in its path."""
        process = self.wait_for_rank(rank)
        self._wait_until(lambda: any(name in file.path for file in process.memory_maps()), f"{name} in rank {rank}")
        return process

    def signal(self, target: str, number: signal.Signals) -> None:
        """To `agent`, to its process `group`, or to a rank by its number."""
        if target == "group":
            os.killpg(self.process.pid, number)
        elif target == "agent":
            self.process.send_signal(number)
        else:
            self.wait_for_rank(int(target)).send_signal(number)

    def end(self) -> tuple[int, str, str]:
        """Status, stdout and stderr, once torchrun and all that it started have ended (they share the pipes)."""
        out, err = self.process.communicate(timeout=TIMEOUT_S)
        return self.process.returncode, out, err

    def kill(self) -> None:
        """All of it, as a machine that loses its power."""
        with suppress(psutil.NoSuchProcess):
            for child in psutil.Process(self.process.pid).children(recursive=True):
                child.kill()
        self.process.kill()

    def _rank(self, rank: int) -> psutil.Process | None:
        with suppress(psutil.Error):
            for child in psutil.Process(self.process.pid).children():
                with suppress(psutil.Error):
                    if child.environ().get("RANK") == str(rank):
                        return child
        return None

    def _wait_until(self, condition: Any, what: str) -> None:
        deadline = time.monotonic() + TIMEOUT_S
        while not condition():
            assert self.process.poll() is None, f"ended before {what}: {self.process.communicate()}"
            assert time.monotonic() < deadline, f"no {what} in {TIMEOUT_S} s"
            time.sleep(0.02)


@contextmanager
def training(
    num_processes: int, run: Path, *arguments: str | Path, launcher: tuple[str, ...] = (), **variables: str
) -> Iterator[Training]:
    """Start the trainer with `--checkpoint.save run`; what is left of it at the end is killed.

    Args:
        launcher: further options of torchrun.
        variables: of the environment.
    """
    command = torchrun(num_processes, *arguments, "--checkpoint.save", run)
    command[4:4] = launcher
    process = subprocess.Popen(
        command, env={**environment(), **variables}, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        start_new_session=True,
    )  # fmt: skip
    started = Training(process, run)
    ranks: list[psutil.Process] = []
    try:
        yield started
    finally:
        with suppress(psutil.NoSuchProcess):
            ranks = psutil.Process(process.pid).children(recursive=True)
        for left in ranks:
            with suppress(psutil.NoSuchProcess):
                left.kill()
        process.kill()
        with suppress(ValueError):  # its output was read
            process.communicate()
