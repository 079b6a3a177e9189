"""Where a run is disturbed: its folder, its starts, and an undisturbed run to compare with."""

from __future__ import annotations

import json
import random
import shlex
import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, get_args

from tests.helpers.launch import ForkedRun, Server, StartedRun, TorchrunRun
from tests.helpers.small_job import CORPORA, JOB_FILE, RUN, SAVE_INTERVAL, STEPS, write_job
from tests.helpers.verdicts import TRUNCATED, differences, last_step, own_messages, records, untidy

PROCESSES = 2
LIMIT_SECONDS = 120.0
"""No start takes longer, however busy the machine."""
ORPHAN_SECONDS = 45.0
"""What is left of a run when its launcher has ended, ends by itself in this time."""
MOST_STARTS = 3
Phase = Literal["start-up", "training", "evaluation", "saving"]
PHASES: tuple[Phase, ...] = get_args(Phase)
SAME_LAYOUT = ("--config", JOB_FILE)


class Failed(AssertionError):
    """What must not be."""


class Skipped(Exception):
    """This machine cannot do that; the text says why."""


@dataclass
class Reference:
    """A run that nobody disturbed, and its folder as it was before it."""

    folder: Path
    torchrun_seconds: float
    """From its start to its first step."""
    fork_seconds: float
    """The same for a forked one."""


def make_reference(server: Server, folder: Path, *, measured: bool) -> Reference:
    """Run it forked and, for the measured one, by torchrun; `measured` as in `small_job.write_job`.

    The kinds that need torchrun play on the measured one.
    """
    shutil.rmtree(folder, ignore_errors=True)
    write_job(folder, measured=measured)
    seconds = []
    for torchrun in (True, False) if measured else (False,):
        shutil.rmtree(folder / RUN, ignore_errors=True)
        started = time.monotonic()
        run = _start(server, folder, 0, torchrun, PROCESSES, SAME_LAYOUT)
        while not last_step(folder) and run.poll() is None:
            time.sleep(0.01)
        seconds.append(time.monotonic() - started)
        status = run.wait(LIMIT_SECONDS)
        if status != 0 or last_step(folder) != STEPS:
            raise Failed(f"the reference run ended with {status}:\n{run.output}")
    return Reference(folder, torchrun_seconds=seconds[0], fork_seconds=seconds[-1])


def _start(server: Server, folder: Path, number: int, torchrun: bool, num_processes: int,
           arguments: Sequence[str]) -> StartedRun:  # fmt: skip
    if torchrun:
        return TorchrunRun(folder, number, num_processes, arguments)
    return ForkedRun(server, folder, number, num_processes, arguments)


@dataclass
class Round:
    """One disturbed run."""

    server: Server
    reference: Reference
    folder: Path
    random: random.Random
    moment: str = ""
    """When the disturbance came, in words."""
    starts: list[StartedRun] = field(default_factory=list)
    commands: list[str] = field(default_factory=list)

    def prepare(self, *, checkpoints: int | None = None) -> int:
        """The reference's folder as a killed run may have left it; how many checkpoints that has.

        Args:
            checkpoints: as many or more; by default any number, with none in half of the rounds.
        """
        most = STEPS // SAVE_INTERVAL
        if checkpoints is None:
            number = self.random.choice([0, self.random.randint(1, most)])
        else:
            number = self.random.randint(checkpoints, most)
        without_cache = self.random.random() < 0.25
        ignore = shutil.ignore_patterns(".index_cache") if without_cache else None
        shutil.copytree(self.reference.folder / CORPORA, self.folder / CORPORA, ignore=ignore)
        shutil.copy2(self.reference.folder / JOB_FILE, self.folder / JOB_FILE)
        if number:
            self._copy_checkpoints(number)
        return number

    def _copy_checkpoints(self, number: int) -> None:
        source, target = self.reference.folder / RUN, self.folder / RUN
        target.mkdir(exist_ok=True)
        steps = [SAVE_INTERVAL * (position + 1) for position in range(number)]
        for step in steps:
            shutil.copytree(source / f"step_{step:08d}", target / f"step_{step:08d}")
        (target / "latest").write_text(f"step_{steps[-1]:08d}\n", encoding="utf-8")
        logged = steps[-1] + self.random.randrange(SAVE_INTERVAL)
        lines = [json.dumps(record) + "\n" for record in records(self.reference.folder) if record["step"] <= logged]
        (target / "metrics.jsonl").write_text("".join(lines), encoding="utf-8")

    def start(self, *overrides: str, torchrun: bool = False, processes: int = PROCESSES) -> StartedRun:
        """Start the run's command."""
        arguments = [*SAME_LAYOUT, *overrides]
        run = _start(self.server, self.folder, len(self.starts), torchrun, processes, arguments)
        self.starts.append(run)
        self.commands.append(f"torchrun --nproc-per-node {processes} …/pretrain_llama3_synE.py {shlex.join(arguments)}")
        return run

    def wait_for_moment(self, run: StartedRun, phase: Phase | None = None) -> None:
        """Wait for a random moment of the run: in this phase, by default in any."""
        phase = phase or self.random.choice(PHASES)
        if phase == "start-up":
            usual = self.reference.torchrun_seconds if run.agent else self.reference.fork_seconds
            delay = self.random.uniform(0.0, usual)
            self.moment = f"{delay:.2f} s after the start"
        elif phase == "saving":
            delay = self.random.uniform(0.0, 0.1)
            self.moment = f"{delay:.3f} s after a save's begin"
            self._wait_until(run, lambda: any((self.folder / RUN).glob(".step_*.tmp")))
        else:
            # An evaluation follows at once on these steps; the last step has nothing to lose any more.
            later = range(last_step(self.folder) + 1, STEPS)
            steps = [step for step in later if phase != "evaluation" or step % 4 == 0 or step % 5 == 0]
            step = self.random.choice(steps or [STEPS])
            delay = self.random.uniform(0.0, 0.1 if phase == "training" else 0.03)
            self.moment = f"{delay:.3f} s after step {step}"
            self._wait_until(run, lambda: last_step(self.folder) >= step)
        deadline = time.monotonic() + delay
        self._wait_until(run, lambda: time.monotonic() > deadline)

    @staticmethod
    def _wait_until(run: StartedRun, condition: Callable[[], bool]) -> None:
        """Or until the run has ended."""
        limit = time.monotonic() + LIMIT_SECONDS
        while not condition() and run.poll() is None and time.monotonic() < limit:
            time.sleep(0.002)

    def ended(self, run: StartedRun, *, seconds: float = LIMIT_SECONDS) -> int:
        """Exit status of a start that has to end by itself in this time, tidily, and leave no process.

        Raises:
            Failed: it did not.
        """
        status = run.wait(seconds)
        if status is None:
            raise Failed(f"stuck: not ended after {seconds:.0f} s")
        deadline = time.monotonic() + ORPHAN_SECONDS
        while (left := run.survivors()) and time.monotonic() < deadline:
            time.sleep(0.1)
        if left:
            raise Failed(f"{len(left)} orphaned processes {ORPHAN_SECONDS:.0f} s after the end: {left}")
        problems = untidy(run.output, forked=isinstance(run, ForkedRun))
        if problems:
            raise Failed(f"start {self.starts.index(run)}: {'; '.join(problems)}")
        return status

    def refusal(self, run: StartedRun, *causes: str) -> str:
        """The one message with which a start has refused; it names one of the causes (any, where none are given).

        Raises:
            Failed: there is no such message.
        """
        messages = sorted(set(TRUNCATED.findall(run.output) or own_messages(run.output)))
        if len(messages) != 1 or (causes and not any(cause in run.output for cause in causes)):
            raise Failed(f"start {self.starts.index(run)} ended without a word on {' or '.join(causes)}: {messages}")
        return messages[0]

    def finish(self, *overrides: str, processes: int = PROCESSES) -> StartedRun:
        """Start again until the run has come to its end.

        Raises:
            Failed: it refuses, or does not come to an end.
        """
        for _ in range(MOST_STARTS):
            run = self.start(*overrides, processes=processes)
            status = self.ended(run)
            if status != 0:
                raise Failed(f"start {self.starts.index(run)}, undisturbed: status {status}: {run.output[-1500:]}")
            if last_step(self.folder) >= STEPS:
                return run
        raise Failed(f"not at its end after {MOST_STARTS} starts")

    def compare(self, *, relative: float = 0.0) -> str:
        """The verdict on a finished run.

        Raises:
            Failed: it is not the reference's.
        """
        found = differences(self.reference.folder, self.folder, relative=relative)
        if found:
            raise Failed(f"{len(found)} differences: " + "; ".join(found[:6]))
        return "equal" if relative == 0.0 else f"equal to {relative:g}"

    def clean_up(self) -> int:
        """End whatever is left; how many processes that were."""
        return sum(run.kill() for run in self.starts)
