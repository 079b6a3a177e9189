"""Runs that a test can disturb: started by the real torchrun, or forked from an interpreter that is warm.

Both are started in a folder of their own, by the same command line there. What belongs to a run is known also when its
parent is gone: by a mark in the environment, or, of what is forked, by the session.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import psutil

from tests.helpers.commands import ROOT, environment, torchrun

MARK = "MEGATRON_SYNE_TEST_RUN"
CLOSE_SECONDS = 30.0
"""torchrun's patience with processes that it has told to end."""
POLL_SECONDS = 0.02


class StartedRun:
    """A run that was started; `output` is what all of its processes have written."""

    def __init__(self, folder: Path, number: int) -> None:
        self.output_file = folder / f"start_{number}.txt"
        self.output_file.touch()
        self.mark = secrets.token_hex(8)

    @property
    def output(self) -> str:
        return self.output_file.read_text(encoding="utf-8", errors="replace")

    def ranks(self) -> dict[int, int]:
        """Rank → process id, of those that are there."""
        raise NotImplementedError

    @property
    def agent(self) -> int | None:
        """The process of torchrun; None for a forked run."""
        return None

    def poll(self) -> int | None:
        """Exit status of the run, None while it goes on."""
        raise NotImplementedError

    def wait(self, seconds: float) -> int | None:
        """Exit status; None where it has not ended after so many seconds."""
        deadline = time.monotonic() + seconds
        while (status := self.poll()) is None and time.monotonic() < deadline:
            time.sleep(POLL_SECONDS)
        return status

    def survivors(self) -> list[psutil.Process]:
        """All processes of this start that are alive: orphans too."""
        raise NotImplementedError

    def kill(self) -> int:
        """End what is left of the run; how many processes that were."""
        left = self.survivors()
        for process in left:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        psutil.wait_procs(left, timeout=10)
        self.wait(5)
        return len(left)


class TorchrunRun(StartedRun):
    """Started by torchrun, in a session of its own."""

    def __init__(self, folder: Path, number: int, num_processes: int, arguments: Sequence[str]) -> None:
        super().__init__(folder, number)
        with self.output_file.open("ab") as output:
            self._process = subprocess.Popen(
                torchrun(num_processes, *arguments), cwd=folder, env={**environment(), MARK: self.mark},
                stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT, start_new_session=True,
            )  # fmt: skip

    @property
    def agent(self) -> int:
        return self._process.pid

    def survivors(self) -> list[psutil.Process]:
        return [process for process in psutil.process_iter() if _environment(process).get(MARK) == self.mark]

    def ranks(self) -> dict[int, int]:
        found = {}
        for process in self.survivors():
            rank = _environment(process).get("RANK")
            if rank is not None and _parent_rank(process) is None:
                found[int(rank)] = process.pid
        return found

    def poll(self) -> int | None:
        return self._process.poll()


class ForkedRun(StartedRun):
    """Forked from a `Server`, which has torchrun's part: it ends all with the first that fails."""

    def __init__(
        self, server: Server, folder: Path, number: int, num_processes: int, arguments: Sequence[str]
    ) -> None:
        import torch

        super().__init__(folder, number)
        self._server = server
        self._store = torch.distributed.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
        self._pids: list[int] = []
        for rank in range(num_processes):
            self._pids.append(server.fork(folder, self.output_file, arguments, self._environment(rank, num_processes)))
        self._told_to_end: float | None = None
        self._first_failure: int | None = None

    def _environment(self, rank: int, num_processes: int) -> dict[str, str]:
        local, size = str(rank), str(num_processes)
        return {
            "RANK": local, "LOCAL_RANK": local, "ROLE_RANK": local, "WORLD_SIZE": size,
            "LOCAL_WORLD_SIZE": size, "ROLE_WORLD_SIZE": size, "GROUP_RANK": "0", "GROUP_WORLD_SIZE": "1",
            "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(self._store.port), "TORCHELASTIC_USE_AGENT_STORE": "True",
            "TORCHELASTIC_RESTART_COUNT": "0", "TORCHELASTIC_MAX_RESTARTS": "0", "TORCHELASTIC_RUN_ID": self.mark,
        }  # fmt: skip

    def survivors(self) -> list[psutil.Process]:
        return [process for process in psutil.process_iter() if _session(process) in self._pids]

    def ranks(self) -> dict[int, int]:
        statuses = self._server.poll(self._pids)
        return {rank: self._pids[rank] for rank, status in enumerate(statuses) if status is None}

    def poll(self) -> int | None:
        statuses = self._server.poll(self._pids)
        failures = [status for status in statuses if status]
        if failures and self._first_failure is None:
            self._first_failure = failures[0]
        alive = [pid for pid, status in zip(self._pids, statuses, strict=True) if status is None]
        if not alive:
            return 1 if self._first_failure else 0
        if self._first_failure is not None:
            self._end(alive)
        return None

    def _end(self, alive: list[int]) -> None:
        """SIGTERM and, in time, SIGKILL; the latter at once to a process that stands still."""
        if self._told_to_end is None:
            self._told_to_end = time.monotonic()
            for pid in alive:
                os.kill(pid, signal.SIGTERM)
        patience_is_over = time.monotonic() > self._told_to_end + CLOSE_SECONDS
        for pid in alive:
            if patience_is_over or psutil.Process(pid).status() == psutil.STATUS_STOPPED:
                os.kill(pid, signal.SIGKILL)


class Server:
    """The warm interpreter."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-W", "ignore", "-m", "tests.helpers.prefork"], cwd=ROOT,
            env={**environment(), "PYTHONPATH": str(ROOT)}, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
            start_new_session=True,
        )  # fmt: skip
        self._answer()

    def fork(self, folder: Path, output: Path, arguments: Sequence[str], variables: dict[str, str]) -> int:
        """Start a process of a run; its id."""
        request = {"argv": [*arguments], "env": variables, "cwd": str(folder), "output": str(output)}
        return int(self._ask(request)["pid"])

    def poll(self, pids: Sequence[int]) -> list[int | None]:
        """Exit status of each, None while it lives."""
        return list(self._ask({"poll": list(pids)})["statuses"])

    def close(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait(30)

    def _ask(self, request: dict[str, Any]) -> dict[str, Any]:
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(request) + "\n")
        self._process.stdin.flush()
        return self._answer()

    def _answer(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        assert line, "the server of warm processes has died"
        return dict(json.loads(line))


@contextlib.contextmanager
def warm_server() -> Iterator[Server]:
    """A server, ended at the end."""
    server = Server()
    try:
        yield server
    finally:
        server.close()


def _environment(process: psutil.Process) -> dict[str, str]:
    try:
        if process.status() == psutil.STATUS_ZOMBIE:
            return {}
        return process.environ()
    except (psutil.NoSuchProcess, psutil.AccessDenied):
        return {}


def _session(process: psutil.Process) -> int | None:
    try:
        return None if process.status() == psutil.STATUS_ZOMBIE else os.getsid(process.pid)
    except (psutil.NoSuchProcess, ProcessLookupError):
        return None


def _parent_rank(process: psutil.Process) -> str | None:
    """The rank of the process's parent: that of a child which a rank has forked."""
    try:
        parent = process.parent()
        return None if parent is None else _environment(parent).get("RANK")
    except psutil.NoSuchProcess:
        return None
