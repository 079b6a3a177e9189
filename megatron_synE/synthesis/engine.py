"""What one process does: snippets → requests in flight → answers judged and journalled → finished shards.

As many workers as the window, each with one snippet at a time; those without one are parked. A worker that is done asks
for the next snippet itself, so that nothing stands between an answer and the next request. A snippet that has to wait
for its next try lies in the feed and holds no worker.
"""

from __future__ import annotations

import asyncio
import logging
import math
import random
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from megatron_synE.config.synthesis import SynthesisConfig
from megatron_synE.journal import DISK_FULL, DiskFull
from megatron_synE.progress import ProgressBar, duration
from megatron_synE.synthesis.client import Answer, ChatClient, EndpointError, PermanentError, TransientError
from megatron_synE.synthesis.feed import Feed
from megatron_synE.synthesis.pace import Pace
from megatron_synE.synthesis.request import Paid, request_seed
from megatron_synE.synthesis.reserve import Reserve
from megatron_synE.synthesis.results import Budget, Results
from megatron_synE.synthesis.shard import Pending, Shard
from megatron_synE.synthesis.tally import Tallies
from megatron_synE.synthesis.task import Accepted, ContentError

logger = logging.getLogger(__name__)

SYNC_SECONDS = 1.0
BEAT_SECONDS = 5.0
REFRESH_SHARE = 0.02
"""Most of its time that a process looks what the others have done."""
BUDGET_SECONDS = 1.0
BUDGET_LOOKS = 0.1
"""The budget is looked at after so long, or after such a part of the requests that are left by it."""
PERMANENT_FAILURES = 20
"""So many in a row, without one answer, are the fault of the endpoint or of the job, not of the snippets."""
FIRST_ANSWER_STATUSES = {403, 404, 405}
"""Before the first answer of a server these say that the endpoint is wrong, whatever the snippet."""


class Engine:
    """One process's workers, and what is kept beside them.

    Args:
        results: refreshed.

    Attributes:
        reason: in words, why it stopped before all was done.
    """

    def __init__(self, config: SynthesisConfig, results: Results, feed: Feed, client: ChatClient) -> None:
        self.reason = ""
        self._config, self._results, self._feed, self._client = config, results, feed, client
        self._budget = Budget(config.budget, config.prices)
        self._pace = Pace(config.pace.window, time.monotonic())
        self._parked: list[asyncio.Future[Pending | None]] = []
        self._timer: asyncio.TimerHandle | None = None
        self._busy = 0
        """Workers with a snippet."""
        self._has_answers = False
        self._failed_for_good: list[tuple[Pending, PermanentError]] = []
        """Snippets whose requests failed for good, until an answer tells that it is not the endpoint's fault."""
        self._last_failure = ""
        self._error: Exception | None = None
        self._reserve: Reserve | None = None
        self._unwritten: list[Callable[[], None]] = []
        self._disk = asyncio.Lock()
        """Held while journals are brought to the disk: none may be closed meanwhile."""
        self._disk_threads = ThreadPoolExecutor(2, "disk")
        self._commits: set[asyncio.Task[None]] = set()
        self._share_used, self._limit_name, self._next_budget, self._free_looks = 0.0, "", -math.inf, 0
        self._stopped = asyncio.Event()
        self._loop: asyncio.AbstractEventLoop | None = None

    async def run(self) -> None:
        """Until all is done, or there is a reason to stop; what is in flight then is waited for.

        Raises:
            EndpointError, ValueError, OSError: see run_job; all that was answered is in the journal.
        """
        self._loop = asyncio.get_running_loop()
        self._reserve = Reserve(self._results.folder.claim(0).parent, self._config.pace.window)
        try:
            if self._has_work():
                await self._check_server()
            self._pace = Pace(self._config.pace.window, time.monotonic())
            workers = [asyncio.create_task(self._work()) for _ in range(self._config.pace.window)]
            keeper = asyncio.create_task(self._keep())
            await asyncio.gather(*workers)
            keeper.cancel()
            await asyncio.gather(keeper, return_exceptions=True)
            self._write_again()
            for shard, _ in self._feed.open.values():
                shard.sync()
            while self._commits:
                await asyncio.gather(*self._commits)
        finally:
            self._disk_threads.shutdown()
            self._feed.close()
            self._reserve.release()
            await self._client.aclose()
        if self._error is not None:
            raise self._error

    def stop(self, reason: str) -> None:
        """Draw no more snippets; what is in flight is still waited for. A signal handler may call it."""
        self.reason = self.reason or reason
        if self._loop is not None:
            self._loop.call_soon_threadsafe(self._stopped.set)
            self._loop.call_soon_threadsafe(self._dispatch)

    def _has_work(self) -> bool:
        """Whether a server is needed: a job that is done tells so without one."""
        first = self._feed.take(time.monotonic())
        if first is not None:
            self._feed.give_back(first, -math.inf)
        return first is not None or not self._feed.is_exhausted

    async def _check_server(self) -> None:
        check = asyncio.create_task(self._client.check(lambda text: logger.warning("%s", text)))
        stopped = asyncio.create_task(self._stopped.wait())
        await asyncio.wait((check, stopped), return_when=asyncio.FIRST_COMPLETED)
        stopped.cancel()
        if check.done():
            await check
        else:
            check.cancel()

    async def _work(self) -> None:
        while True:
            row = self._next()
            if row is None:
                future: asyncio.Future[Pending | None] = asyncio.get_running_loop().create_future()
                self._parked.append(future)
                self._dispatch()
                row = await future
                if row is None:
                    return
            try:
                await self._serve(row)
            except Exception as error:
                self._fail(error)
            self._busy -= 1
            if self._parked:
                self._dispatch()

    def _next(self) -> Pending | None:
        """A snippet that may be sent now, which it counts as being so; None where there is none."""
        if self._is_stopping:
            return None
        now = time.monotonic()
        try:
            row = self._feed.take(now) if self._pace.delay(now) == 0 and self._has_budget(now) else None
            self._commit_complete()
        except (ValueError, OSError) as error:
            self._fail(error)
            return None
        if row is not None:
            self._pace.send(now)
            self._busy += 1
        return row

    def _dispatch(self) -> None:
        """Give parked workers what may be sent; see to it that there is a next time, or end."""
        while self._parked and (row := self._next()) is not None:
            self._parked.pop().set_result(row)
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._busy:
            seconds = self._seconds_until_next()
        elif self._is_stopping or self._feed.is_exhausted or not self._has_budget(time.monotonic()):
            self._end()
            return
        else:
            seconds = self._seconds_until_next()
            if seconds == math.inf and not self._commits:
                self._end()
                return
        if self._parked and seconds < math.inf:
            self._timer = asyncio.get_running_loop().call_later(max(seconds, 1e-3), self._dispatch)

    def _seconds_until_next(self) -> float:
        if self._is_stopping or self._share_used >= 1:
            return math.inf
        now = time.monotonic()
        return self._pace.delay(now) or self._feed.next_due(now)

    def _end(self) -> None:
        """Nothing is in flight, and nothing will be."""
        if self._failed_for_good and (self._has_answers or not self._is_stopping):
            try:
                self._end_failed_for_good()
            except EndpointError as error:
                self._fail(error)
            if not self._is_stopping and not self._feed.is_exhausted:
                asyncio.get_running_loop().call_soon(self._dispatch)
                return
        if self._share_used >= 1 and not self.reason:
            self.reason = f"stopped at the budget of {self._limit_name}"
        while self._parked:
            self._parked.pop().set_result(None)

    @property
    def _is_stopping(self) -> bool:
        return bool(self.reason) or self._error is not None

    def _fail(self, error: Exception) -> None:
        """Stop for an error; the first counts."""
        if isinstance(error, OSError) and error.errno in DISK_FULL:
            text = f"{error.strerror}; what was answered is kept: free some space and start again"
            error = OSError(error.errno, f"{error.filename or self._config.job}: {text}")
        if self._error is None:
            self._error = error

    async def _serve(self, row: Pending) -> None:
        """One request, and what follows from its answer."""
        sent_at = time.monotonic()
        try:
            answer = await self._client.ask(row.task.messages(row.snippet), request_seed(row.identity, row.attempts))
        except TransientError as error:
            self._failed_for_now(row, error, sent_at)
        except PermanentError as error:
            self._pace.answered()
            self._last_failure = str(error)
            self._failed_for_good.append((row, error))
            is_wrong = not self._has_answers and error.status in FIRST_ANSWER_STATUSES
            if is_wrong or len(self._failed_for_good) >= PERMANENT_FAILURES:
                raise self._client.endpoint_error(error) from None
        else:
            self._pace.answered()
            self._has_answers = True
            if self._failed_for_good:
                self._end_failed_for_good()
            self._judge(row, answer)

    def _failed_for_now(self, row: Pending, error: TransientError, sent_at: float) -> None:
        now, pace, config = time.monotonic(), self._pace, self._config.pace
        self._last_failure = str(error)
        if error.is_refusal:
            pace.refused(now, sent_at, error.retry_after_seconds)
        else:
            pace.failed(now, is_overload=error.is_overload)
            row.tries += not pace.is_held  # a server that is down for all is no snippet's fault
        if row.tries >= config.tries:
            self._settle(row, None, "failed", f"transient: {error}")
            return
        seconds = min(config.backoff_seconds * 2.0 ** min(max(row.tries - 1, 0), 60), config.max_backoff_seconds)
        seconds = max(seconds * random.uniform(0.5, 1.5), error.retry_after_seconds or 0.0)
        self._feed.give_back(row, now + seconds)

    def _judge(self, row: Pending, answer: Answer) -> None:
        paid = Paid(answer.prompt_tokens, answer.completion_tokens)
        row.attempts += 1
        row.paid = row.paid.plus(paid)
        row.tries = 0
        if answer.is_refused:
            self._settle(row, paid, "failed", "permanent: refused")
            return
        try:
            if not answer.text or answer.text.isspace():
                raise ContentError("no text")
            verdict = row.task.judge(row.snippet, answer.text, answer.finish_reason)
        except ContentError as error:
            if row.attempts >= self._config.pace.attempts:
                self._settle(row, paid, "failed", f"content: {error}")
            elif self._feed.owns(row):
                reason = str(error)
                self._write(lambda: row.shard.record_attempt(row, paid, reason))
                self._feed.give_back(row, 0.0)
            else:
                self._feed.settled(row)
            return
        if isinstance(verdict, Accepted):
            self._settle(row, paid, "accepted", "", verdict.document)
        else:
            self._settle(row, paid, "rejected", verdict.reason)

    def _settle(
        self, row: Pending, paid: Paid | None, outcome: str, reason: str, document: dict[str, object] | None = None
    ) -> None:
        def write() -> None:
            if self._feed.owns(row):
                row.shard.settle(row, paid, outcome, reason, document)
            self._feed.settled(row)

        self._write(write)
        self._commit_complete()

    def _end_failed_for_good(self) -> None:
        """Settle what failed for good.

        Raises:
            EndpointError: neither this process nor the job has any answer that would speak for the endpoint.
        """
        rows, self._failed_for_good = self._failed_for_good, []
        if not self._has_answers and not self._results.tallies.total().counts["accepted"]:
            raise self._client.endpoint_error(rows[0][1])
        for row, error in rows:
            self._settle(row, None, "failed", f"permanent: {error}")

    def _write(self, action: Callable[[], None]) -> None:
        """Write to a journal. On a full disk nothing is sent any more, and what is set aside takes the last answers."""
        self._unwritten.append(action)
        self._write_again()

    def _write_again(self) -> None:
        while self._unwritten:
            try:
                self._unwritten[0]()
            except DiskFull as error:
                assert self._reserve is not None
                self._fail(error)
                if not self._reserve.is_there:
                    return
                self._reserve.release()
                continue
            self._unwritten.pop(0)

    def _commit_complete(self) -> None:
        while self._feed.complete:
            task = asyncio.create_task(self._commit(self._feed.complete.pop()))
            self._commits.add(task)
            task.add_done_callback(self._commits.discard)

    async def _commit(self, shard: Shard) -> None:
        claim = self._feed.claim_of(shard)
        if claim is None:
            return
        try:
            await self._in_disk_thread(shard.commit, claim.is_ours)
            async with self._disk:
                if self._feed.claim_of(shard) is not None:
                    self._feed.drop(shard)
            self._results.look_at(shard.number)
        except (ValueError, OSError) as error:
            self._fail(error)
        self._dispatch()

    async def _in_disk_thread(self, function: Callable[..., Any], *arguments: Any) -> None:
        """Threads of its own: others may all wait for slow judgements."""
        await asyncio.get_running_loop().run_in_executor(self._disk_threads, function, *arguments)

    async def _keep(self) -> None:
        """Bring journals to the disk, keep claims alive, look at the others, and say how far the job is."""
        total, next_beat, next_refresh, was_held = self._results.shards.num_snippets, 0.0, 0.0, False
        rows, paid = self._sums()
        started, first_tokens = time.monotonic(), paid.total().tokens
        with ProgressBar(self._config.job, total, "snippets", done=rows.total().settled) as bar:
            while True:
                await asyncio.sleep(SYNC_SECONDS)
                try:
                    async with self._disk:
                        for shard, _ in list(self._feed.open.values()):
                            await self._in_disk_thread(shard.sync)
                    now = time.monotonic()
                    if now >= next_beat:
                        next_beat = now + BEAT_SECONDS
                        self._beat()
                    if now >= next_refresh:
                        self._results.refresh()
                        seconds = time.monotonic() - now
                        next_refresh = now + max(BEAT_SECONDS, seconds / REFRESH_SHARE)
                except (ValueError, OSError) as error:
                    self._fail(error)
                self._look_at_server(now, was_held)
                was_held = self._pace.is_held
                rows, paid = self._sums()
                tokens_per_second = (paid.total().tokens - first_tokens) / (time.monotonic() - started)
                bar.what = self._progress_text(rows, paid, tokens_per_second)
                bar.at(rows.total().settled)
                self._dispatch()

    def _beat(self) -> None:
        for shard, claim in list(self._feed.open.values()):
            if not claim.beat(shard.paid.to_json()):
                logger.warning("shard %d was taken by another process while this one stood still", shard.number)
                self._feed.drop(shard)

    def _look_at_server(self, now: float, was_held: bool) -> None:
        seconds = self._pace.failing_seconds(now)
        if seconds > self._config.pace.patience_seconds:
            self._fail(EndpointError(
                f"{self._config.endpoint.base_url}: no answer for {duration(seconds)} (pace.patience_seconds), last: "
                f"{self._last_failure}; start again when the server does"
            ))  # fmt: skip
        elif self._pace.is_held and not was_held:
            logger.warning("%s: %s; trying again now and then", self._config.endpoint.base_url, self._last_failure)
        elif was_held and not self._pace.is_held:
            logger.warning("%s: answers again", self._config.endpoint.base_url)

    def _progress_text(self, rows: Tallies, paid: Tallies, tokens_per_second: float) -> str:
        cost, accepted = paid.total().cost(self._config.prices), rows.total().counts["accepted"]
        parts = [self._config.job, f"{accepted:,} accepted", f"{tokens_per_second:,.0f} tokens/s"]
        parts += [f"{cost:.2f} {self._config.prices.currency}"] if cost else []
        parts += [f"{self._share_used:.0%} of the budget"] if self._limit_name else []
        return ", ".join(parts)

    def _sums(self) -> tuple[Tallies, Tallies]:
        """Rows and payments of the whole job; those of other processes as of some seconds ago."""
        rows, paid = Tallies(), Tallies()
        for tallies in (self._results.tallies, self._results.in_progress_but(self._feed.open)):
            rows.add(tallies)
            paid.add(tallies)
        paid.add(self._results.former)
        for shard, _ in self._feed.open.values():
            rows.add(shard.tallies)
            paid.add(shard.paid)
        return rows, paid

    def _has_budget(self, now: float) -> bool:
        if not self._budget.is_limited:
            return True
        if now >= self._next_budget or self._free_looks <= 0:
            rows, paid = self._sums()
            self._share_used, self._limit_name = self._budget.used(rows, paid, self._busy)
            self._next_budget = now + BUDGET_SECONDS
            left = (1 - self._share_used) / max(self._share_used, 1e-9)
            self._free_looks = int(BUDGET_LOOKS * left * paid.total().counts["answers"])
        self._free_looks -= 1
        return self._share_used < 1
