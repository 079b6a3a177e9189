"""A run that is told to stop, saves and leaves.

Any of `STOP_SIGNALS`, to any process of the run, is remembered; at the end of the step all processes agree on it, the
run saves and ends with status 0. Said is one line. What the moment changes:

- during start-up: the run ends before its first step, and saves nothing: a run that would have resumed has its
  checkpoint. A start-up that does not get to that in `STARTUP_GRACE_SECONDS` (it waits for processes that will never
  come, or reads a large checkpoint) is cut off, status 1.
- during evaluation and saving: they are finished.
- during benchmarks: they are given up, and measured when the run goes on.
- in a long step, without pipeline parallelism: the step is dropped between two micro-batches. The weights are still
  those after the step before, and are saved. With pipeline parallelism the step is finished.

torch is imported where it is needed: this module is the first that a process loads.
"""

from __future__ import annotations

import ctypes
import math
import os
import signal
import socket
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

    from megatron_synE.runtime.peers import Peers

STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGHUP)
STARTUP_GRACE_SECONDS = 20.0
"""Less than the 30 s after which torchrun kills what it has told to stop."""
LAST_WORDS_SECONDS = 5.0
"""How long a process may take to end by itself once another of its run has failed."""
LONG_STEP_SECONDS = 5.0
"""Steps that take longer are dropped on a signal, not finished."""

_LAUNCHER_GONE = 0xFF  # beside signal numbers, which are below 65
_PR_SET_PDEATHSIG = 1
_PF_EXITING = 4


class StepDropped(Exception):
    """The step was given up between two micro-batches, or what is measured before it; all is as it was before."""


class StopSignal:
    """Whether this run is to stop. The one object of its kind in a process.

    Args:
        launcher: process id of the launcher; None where nobody launched. Its death is a signal like the others.
    """

    def __init__(self, launcher: int | None = None) -> None:
        self._launcher = launcher
        self._prctl = ctypes.CDLL(None, use_errno=True).prctl
        self._number = 0
        self._told = threading.Event()
        self._training = threading.Event()
        self._finished = threading.Event()
        self._said = False
        self._saying = threading.Lock()
        self._peers: Peers | None = None
        self._slowest_step_seconds = math.inf
        self._is_main = os.environ.get("RANK", "0") == "0"

    def install(self) -> None:
        """Catch the signals of this process, from its main thread."""
        reader, writer = socket.socketpair()
        writer.setblocking(False)
        # The bytes reach the thread also while the main thread is inside of a collective.
        signal.set_wakeup_fd(writer.fileno(), warn_on_full_buffer=False)
        for number in STOP_SIGNALS:
            signal.signal(number, self._remember)
        threading.Thread(target=self._listen, args=(reader, writer), name="stop signal", daemon=True).start()
        if self._launcher is not None:
            self._prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
        child = _ForkedChild(self._prctl)
        os.register_at_fork(before=child.prepare, after_in_child=child.settle)

    def meet(self, peers: Peers) -> None:
        """From now on one process speaks for all."""
        self._peers = peers
        if self._said:
            peers.is_first("stop")
        elif self.told and peers.has_board:
            self._say()

    @property
    def told(self) -> bool:
        """Whether this process was told to stop; others may not know yet."""
        return self._told.is_set()

    def tell_launcher_is_gone(self) -> None:
        """Stop as by a signal: whoever started this process has died."""
        self._tell(_LAUNCHER_GONE)

    def let_go(self) -> None:
        """From now on signals end this process at once: there is nothing to save."""
        if self.told:
            os._exit(1)
        signal.set_wakeup_fd(-1)
        for number in STOP_SIGNALS:
            signal.signal(number, signal.SIG_DFL)

    def wait(self, seconds: float) -> bool:
        """Sleep until told to stop; whether that happened."""
        return self._told.wait(seconds)

    def begin_training(self) -> None:
        """The start-up is over: from now on there is something to save."""
        self._training.set()

    def finish(self) -> None:
        """Everything is saved: a signal changes nothing any more."""
        self._finished.set()
        self._training.set()

    def anywhere(self, group: ProcessGroup, step_seconds: float = math.inf) -> bool:
        """Whether any process was told to stop; the same answer on all of them, which call this after each step.

        Args:
            group: of all processes, between their hosts: no device is waited for.
            step_seconds: how long this process's last step took; unknown before the first, which counts as long.
        """
        number, self._slowest_step_seconds = self._agree(group, step_seconds)
        if number and not self._number:
            self._number = number
        if number and self._is_main:
            self._say()
        return number > 0

    def drop_if_told(self, group: ProcessGroup, *, is_long: bool = False) -> None:
        """Between two micro-batches of a step, or two parts of a measurement, on all processes alike.

        Args:
            is_long: it is given up however long the run's steps are.

        Raises:
            StepDropped: some process was told to stop, and steps are long.
        """
        if not is_long and self._slowest_step_seconds < LONG_STEP_SECONDS:
            return
        if self._agree(group, 0.0)[0]:
            raise StepDropped

    def _agree(self, group: ProcessGroup, seconds: float) -> tuple[int, float]:
        """The signal and the seconds of the process that has most of each."""
        import torch

        values = torch.tensor([float(self._number), seconds])
        torch.distributed.all_reduce(values, op=torch.distributed.ReduceOp.MAX, group=group)
        number, slowest = values.tolist()
        return int(number), slowest

    def _remember(self, number: int, frame: FrameType | None) -> None:
        self._number = self._number or self._meaning(number)

    def _meaning(self, number: int) -> int:
        is_gone = self._launcher is not None and (os.getppid() != self._launcher or _is_ending(self._launcher))
        return _LAUNCHER_GONE if number == signal.SIGTERM and is_gone else number

    def _listen(self, reader: socket.socket, writer: socket.socket) -> None:
        assert writer is not None  # kept open by this thread
        while True:
            for number in reader.recv(64):
                if number in STOP_SIGNALS:
                    self._tell(number)

    def _tell(self, number: int) -> None:
        if self._told.is_set() or self._finished.is_set():
            return
        self._number = self._number or self._meaning(number)
        self._told.set()
        threading.Thread(target=self._see_to_the_end, name="stopping", daemon=True).start()

    def _see_to_the_end(self) -> None:
        """Say it; and end this process where the run cannot agree to stop any more."""
        if self._peers is not None and (self._peers.was_raised("failure") or self._peers.dead()):
            # torchrun closes the run because another process failed, which has had its say.
            if not self._finished.wait(LAST_WORDS_SECONDS):
                os._exit(1)
            return
        if self._is_main or (self._peers is not None and self._peers.has_board):
            self._say()
        # Without a launcher nobody comes any more that a start-up could wait for.
        if not self._training.wait(0.0 if self._number == _LAUNCHER_GONE else STARTUP_GRACE_SECONDS):
            os._exit(1)

    def _say(self) -> None:
        with self._saying:
            already, self._said = self._said, True
        if already or (self._peers is not None and not self._peers.is_first("stop")):
            return
        name = "the launcher is gone" if self._number == _LAUNCHER_GONE else signal.Signals(self._number).name
        moment = "after this step" if self._training.is_set() else "before the first step"
        print(f"pretrain_llama3_synE: {name}: stopping {moment}", file=sys.stderr, flush=True)


def _is_ending(pid: int) -> bool:
    """Whether the process's first thread is at its end. While others of its threads live, it remains the parent.

    Read here and not in `runtime.processes`, whose package imports torch: this runs in a signal handler.
    """
    try:
        text = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    except (FileNotFoundError, ProcessLookupError):
        return True
    return bool(int(text.rpartition(")")[2].split()[6]) & _PF_EXITING)


class _ForkedChild:
    """The writers of asynchronous saves: what stops a run is not for them. They finish, or die with their parent."""

    def __init__(self, prctl: Callable[[int, int], int]) -> None:
        self._prctl = prctl
        self._parent = 0

    def prepare(self) -> None:
        """In the parent, before it forks."""
        self._parent = os.getpid()

    def settle(self) -> None:
        """In the child."""
        signal.set_wakeup_fd(-1)
        for number in STOP_SIGNALS:
            signal.signal(number, signal.SIG_IGN)
        self._prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != self._parent:
            os._exit(1)  # it died before we asked for that signal
