"""The snippets that a process asks about next, out of shards that it claims one after the other."""

from __future__ import annotations

import heapq
import itertools
import math
from collections.abc import Iterator

from megatron_synE.synthesis.claims import Claim, Claims
from megatron_synE.synthesis.finished import FinishedShard, reopen, tidy
from megatron_synE.synthesis.folder import JobFolder, SnippetShards
from megatron_synE.synthesis.request import Settings
from megatron_synE.synthesis.results import Results
from megatron_synE.synthesis.shard import Pending, Shard
from megatron_synE.synthesis.task import Tasks

MAX_LIVE_PER_SLOT = 4
MIN_LIVE = 256
"""Snippets that are in flight or wait for their next try: no more are drawn then."""
OPEN_SHARDS = 16
LOOK_SECONDS = 2.0
"""Between two looks at shards that other processes have."""


class Feed:
    """Snippets without a row, and shards whose rows are all there.

    Args:
        window: most requests in flight.
        results: refreshed.

    Attributes:
        open: shards in progress, by number, with their claims.
        complete: shards of `open` that can be committed; the caller takes them out.
    """

    def __init__(
        self, folder: JobFolder, shards: SnippetShards, settings: Settings, tasks: Tasks, results: Results, window: int
    ) -> None:
        self.open: dict[int, tuple[Shard, Claim]] = {}
        self.complete: list[Shard] = []
        self._folder, self._shards, self._settings, self._tasks = folder, shards, settings, tasks
        self._results = results
        self._fingerprints = {task.kind: settings.fingerprint(task) for task in tasks.kinds()}
        self._max_live = max(window * MAX_LIVE_PER_SLOT, MIN_LIVE)
        self._max_open = OPEN_SHARDS + 2 * window // shards.shard_rows
        self._claims = Claims(folder.claim(0).parent)
        self._to_try = iter(range(shards.num_shards))
        self._held_by_others: list[int] = []
        self._next_look = -math.inf
        self._pass_is_over = False
        self._rows: Iterator[Pending] | None = None
        self._drawn: Shard | None = None
        """The shard that `_rows` belongs to."""
        self._live = 0
        self._waiting: list[tuple[float, int, Pending]] = []
        self._order = itertools.count()

    def take(self, now: float) -> Pending | None:
        """The next snippet; None where there is none at the time.

        Raises:
            ValueError: a file of the job is damaged.
        """
        while self._waiting and self._waiting[0][0] <= now:
            row = heapq.heappop(self._waiting)[2]
            if self.owns(row):
                return row
            self._live -= 1
        while self._live < self._max_live and (self._rows is not None or self._open_next(now)):
            assert self._rows is not None and self._drawn is not None
            row_or_end = next(self._rows, None)
            if row_or_end is not None:
                self._live += 1
                return row_or_end
            drawn, self._rows, self._drawn = self._drawn, None, None
            if drawn.is_complete:
                self.complete.append(drawn)
        return None

    def give_back(self, row: Pending, due: float) -> None:
        """To be asked about again, not before `due`."""
        heapq.heappush(self._waiting, (due, next(self._order), row))

    def settled(self, row: Pending) -> None:
        """The snippet has its row, or its shard is lost."""
        self._live -= 1
        if row.shard is not self._drawn and row.shard.is_complete and self.owns(row):
            self.complete.append(row.shard)

    def owns(self, row: Pending) -> bool:
        """Whether the snippet's shard is still this process's."""
        return self.claim_of(row.shard) is not None

    def claim_of(self, shard: Shard) -> Claim | None:
        """None where it was dropped."""
        held = self.open.get(shard.number)
        return held[1] if held is not None and held[0] is shard else None

    def drop(self, shard: Shard) -> None:
        """A shard is committed, or lost to another process."""
        claim = self.open.pop(shard.number)[1]
        shard.close()
        claim.release()
        if shard is self._drawn:
            self._rows = self._drawn = None

    def next_due(self, now: float) -> float:
        """Seconds until there may be another snippet; inf: not before one in flight comes back."""
        due = self._waiting[0][0] - now if self._waiting else math.inf
        if self._rows is None and self._held_by_others:
            due = min(due, self._next_look - now)
        return max(due, 0.0)

    @property
    def is_exhausted(self) -> bool:
        """Whether there is nothing left to draw: what is not done yet, living processes have."""
        return self._rows is None and not self._waiting and not self._claims.undecided and self._pass_is_over

    def close(self) -> None:
        """Give all claims back; the journals stay."""
        for shard, _ in list(self.open.values()):
            self.drop(shard)

    def _open_next(self, now: float) -> bool:
        if len(self.open) >= self._max_open:
            return False
        if self._pass_is_over and self._held_by_others and now >= self._next_look:
            self._to_try, self._held_by_others = iter(self._held_by_others), []
            self._pass_is_over = False
        for number in self._to_try:
            if self._open(number):
                return True
        if not self._pass_is_over:
            self._pass_is_over, self._next_look = True, now + LOOK_SECONDS
        return False

    def _open(self, number: int) -> bool:
        """Claim a shard that has rows to be made."""
        finished = self._results.finished.get(number)
        journal, claim_path = self._folder.journal(number), self._folder.claim(number)
        is_done = finished is not None and self._fits(finished)
        if is_done and not journal.exists() and not claim_path.exists():
            return False
        claim = self._claims.take(claim_path)
        if claim is None:
            if not is_done:
                self._held_by_others.append(number)
            return False
        try:
            finished = FinishedShard.read(self._folder, number)
            if finished is not None and journal.exists():
                tidy(self._folder, number)
            if finished is not None and self._fits(finished):
                claim.release()
                return False
            if finished is not None:
                reopen(self._folder, number)
                self._results.forget(number)
            for left in self._folder.rows(number).parent.glob(f"{number:05d}.json*.tmp-*"):
                left.unlink()  # of a process that was killed while it wrote
            shard = Shard(self._folder, self._shards, number, self._settings, self._tasks)
        except BaseException:
            claim.release()
            raise
        claim.beat(shard.paid.to_json())
        self.open[number] = shard, claim
        self._rows, self._drawn = shard.pending(), shard
        return True

    def _fits(self, finished: FinishedShard) -> bool:
        """Whether its rows are by the prompts and settings in force."""
        return finished.fingerprints.items() <= self._fingerprints.items()
