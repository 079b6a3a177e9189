"""Notices that a run stands still, says which process, and ends it so that it can be started again.

The main thread of each process beats: it says what it is about to do. A thread watches those beats, and shows on the
board (see `peers`) that it lives itself. The run stands still when

- a process's main thread did not beat for the limit of what it does, or
- a process's thread gives no sign of life for `hang_timeout_seconds`: it was stopped, or its machine is gone. Each
  process watches the next one, so this costs the same in a run of any size.

Then every process that can writes the stacks of its threads, the lowest of them tells, and all end with `STATUS`.
Time in which this process itself did not run (it was stopped for a while, its machine slept) does not count.
The thread also sees when the launcher dies, whose processes would otherwise live on unseen.
"""

from __future__ import annotations

import faulthandler
import json
import os
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

from megatron_synE.runtime.peers import Peers

STATUS = 75
"""Exit status of a process whose run stood still: EX_TEMPFAIL, try again."""
INTERVAL_SECONDS = 1.0
SIGN_OF_LIFE_SECONDS = 3.0
"""How long the processes are looked at, at the end, to tell who is still there."""
LAST_WORDS_SECONDS = 15.0
"""How long the others wait for the one that tells."""


class Watchdog:
    """Of one process; all processes of the run have one.

    Args:
        peers: all processes.
        hang_timeout_seconds: limit of one beat, and of a process without a sign of life.
        slow_timeout_seconds: limit of a beat that was announced as slow: reading or writing a checkpoint.
        folder: where the stacks go; None for stderr.
        launcher: process id of the launcher, None where nobody launched.
        on_launcher_gone: called in the thread, once.
        tell: says what happened, in the thread, on one process only.
    """

    def __init__(
        self, peers: Peers, *, hang_timeout_seconds: float, slow_timeout_seconds: float, folder: Path | None,
        launcher: int | None, on_launcher_gone: Callable[[], None], tell: Callable[[str], None],
    ) -> None:  # fmt: skip
        self._peers = peers
        self._hang_seconds = hang_timeout_seconds
        self._slow_seconds = max(slow_timeout_seconds, hang_timeout_seconds)
        self._folder = folder
        self._launcher = launcher
        self._on_launcher_gone = on_launcher_gone
        self._tell = tell
        self._beat = (0, "starting", True)
        self._seen_beat = -1
        self._still_seconds = 0.0
        self._neighbour = (peers.rank + 1) % peers.world_size
        self._seen_life: int | None = None
        self._silent_seconds = 0.0
        self._stopped = threading.Event()

    def start(self) -> None:
        """Watch from now on."""
        threading.Thread(target=self._watch, name="watchdog", daemon=True).start()

    def stop(self) -> None:
        """The run is over."""
        self._stopped.set()

    def beat(self, phase: str, *, slow: bool = False) -> None:
        """Say what the main thread does next. All processes beat alike; who beat least is the one they wait for."""
        self._beat = (self._beat[0] + 1, phase, slow)

    def _watch(self) -> None:
        interval = min(INTERVAL_SECONDS, self._hang_seconds / 10)
        last = time.monotonic()
        while not self._stopped.wait(interval):
            now = time.monotonic()
            self._look(min(now - last, 2 * interval))
            last = now

    def _look(self, seconds: float) -> None:
        """One round, `seconds` after the last."""
        if self._launcher is not None and os.getppid() != self._launcher:
            self._launcher = None
            self._peers.leave_board()
            self._slow_seconds = self._hang_seconds  # nobody else will end this process
            self._on_launcher_gone()
        number, phase, slow = self._beat
        if number != self._seen_beat:
            self._seen_beat, self._still_seconds = number, 0.0
            self._peers.write(f"beat/{self._peers.rank}", json.dumps([number, phase]))
        else:
            self._still_seconds += seconds
        self._peers.raise_counter(f"life/{self._peers.rank}")
        life = self._peers.raise_counter(f"life/{self._neighbour}", by=0)
        if life != self._seen_life or life is None:
            self._seen_life, self._silent_seconds = life, 0.0
        else:
            self._silent_seconds += seconds
        limit_seconds = self._slow_seconds if slow else self._hang_seconds
        hangs = self._still_seconds > limit_seconds or self._silent_seconds > self._hang_seconds
        if (hangs or self._peers.was_raised("hang")) and not self._stopped.is_set():
            self._end()

    def _end(self) -> None:
        self._peers.raise_counter("hang")
        self._write_stacks()
        silent = self._silent()
        living = [rank for rank in range(self._peers.world_size) if rank not in silent]
        if self._peers.rank == min(living):
            self._tell(self._describe(silent))
            self._peers.raise_counter("hang told")
        else:
            self._show_life(LAST_WORDS_SECONDS, until="hang told")
        os._exit(STATUS)

    def _write_stacks(self) -> None:
        number, phase, _ = self._beat
        header = f"process {self._peers.rank} ({self._who(self._peers.rank)}), beat {number}: {phase}\n"
        if self._folder is None:
            sys.stderr.write(header)
            faulthandler.dump_traceback(sys.__stderr__ or sys.stderr, all_threads=True)
            return
        try:
            with open(self._folder / f"hang-rank{self._peers.rank}.txt", "w", encoding="utf-8") as file:
                file.write(header)
                file.flush()
                faulthandler.dump_traceback(file, all_threads=True)
        except OSError as error:
            print(f"pretrain_llama3_synE: no stacks: {error}", file=sys.stderr, flush=True)

    def _silent(self) -> set[int]:
        """Ranks that show no life while this process looks."""
        before = self._signs_of_life()
        self._show_life(min(SIGN_OF_LIFE_SECONDS, 3 * self._hang_seconds))
        after = self._signs_of_life()
        same = {rank for rank in range(self._peers.world_size) if before[rank] == after[rank] is not None}
        return same - {self._peers.rank}

    def _signs_of_life(self) -> list[int | None]:
        return [self._peers.raise_counter(f"life/{rank}", by=0) for rank in range(self._peers.world_size)]

    def _show_life(self, seconds: float, until: str | None = None) -> None:
        end = time.monotonic() + seconds
        while time.monotonic() < end and not (until is not None and self._peers.was_raised(until)):
            self._peers.raise_counter(f"life/{self._peers.rank}")
            time.sleep(0.1)

    def _describe(self, silent: set[int]) -> str:
        beats = self._last_beats()
        least = min(number for number, _ in beats.values())
        culprits = sorted(silent) or [rank for rank, (number, _) in beats.items() if number == least]
        where = f"{self._folder}/hang-rank*.txt" if self._folder is not None else "above"
        if len(culprits) == self._peers.world_size > 1:
            who = f"all processes, last seen in {beats[0][1]}"
        else:
            named = [f"process {rank} ({self._who(rank)}), last seen in {beats[rank][1]}" for rank in culprits[:8]]
            who = "; ".join(named) + (f" and {len(culprits) - 8} more" if len(culprits) > 8 else "")
        return (
            f"the run stands still: {who}. The stacks are in {where}. It ends with status {STATUS}; "
            "the same command goes on from the last checkpoint"
        )

    def _last_beats(self) -> dict[int, tuple[int, str]]:
        """Number of beats and phase of each process, as far as the board tells."""
        beats = {self._peers.rank: self._beat[:2]}
        for rank in range(self._peers.world_size):
            text = self._peers.read(f"beat/{rank}")
            if text is not None and rank != self._peers.rank:
                number, phase = json.loads(text)
                beats[rank] = (number, phase)
        return {rank: beats.get(rank, (0, "starting")) for rank in range(self._peers.world_size)}

    def _who(self, rank: int) -> str:
        peer, state = self._peers.peers[rank], self._peers.state(rank)
        if rank == self._peers.rank:
            state = None
        return f"host {peer.host}, pid {peer.pid}" + (f", {state}" if state else "")
