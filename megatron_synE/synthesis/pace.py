"""How many requests may be in flight, how many a second, and when to leave the server alone.

- The limit in flight follows the load: it doubles from a small start, then grows by one a round and shrinks by a factor
  when more than a third of a round failed by overload (additive increase, multiplicative decrease). A round is as many
  answers as the limit.
- The rate follows rate limits: there is none until a 429. Then it is what the server admitted lately, and creeps up
  until the next 429. A limit in flight alone would find no even pace: refusals come back at once, and their slots
  would knock again at once.
- The breaker opens when nothing but failures came for a while: nothing is sent for as long as the server asks for, or
  twice as long as the last time; then one request tries.

Times are seconds of one clock, which the caller reads.
"""

from __future__ import annotations

import math
from collections import deque

FIRST_LIMIT = 16
DECREASE = 0.7
OVERLOAD_SHARE = 1 / 3
RATE_MEMORY_SECONDS = 2.0
"""Over which the admitted rate is measured."""
RATE_MARGIN = 0.98
RATE_GROWTH_PER_SECOND = 0.02
"""At first after a refusal; doubles with every RATE_MEMORY_SECONDS without one, up to MAX_RATE_GROWTH_PER_SECOND."""
MAX_RATE_GROWTH_PER_SECOND = 0.5
MIN_RATE, MAX_RATE = 0.2, 1e6
BURST_SECONDS = 0.02
"""Requests of so much time may go at once."""
BREAKER_FAILURES = 16
BREAKER_SECONDS = 2.0
"""So many failures in a row over so much time open the breaker."""
FIRST_HOLD_SECONDS = 1.0
MAX_HOLD_SECONDS = 60.0


class Pace:
    """The pace of one process.

    Args:
        window: most requests in flight.
        now: the time.
    """

    def __init__(self, window: int, now: float) -> None:
        self.window = window
        self.in_flight = 0
        self.limit = float(min(window, FIRST_LIMIT))
        self.rate: float | None = None
        self.last_answer = now
        """When the server last gave an answer of any use."""
        self._is_starting = True
        self._round_answers = self._round_overloads = 0
        self._allowance, self._allowance_at = 0.0, now
        self._started, self._last_refusal, self._last_cut = now, -math.inf, -math.inf
        self._sent: deque[tuple[float, int]] = deque()
        self._failures, self._failing_since = 0, now
        self._hold_seconds, self._held_until = 0.0, -math.inf
        self._asked_until = -math.inf

    def delay(self, now: float) -> float:
        """0 where a request may be sent; else the seconds until that may be so, inf: not before one comes back."""
        if self.in_flight >= (1 if self.is_held else int(self.limit)):
            return math.inf
        if now < self._held_until:
            return self._held_until - now
        if self.rate is None:
            return 0.0
        self._grow_rate(now)
        return 0.0 if self.rate is None or self._allowance >= 1 else max((1 - self._allowance) / self.rate, 1e-4)

    @property
    def is_held(self) -> bool:
        """Whether the breaker is open, or one request tries."""
        return self._hold_seconds > 0

    def send(self, now: float) -> None:
        """A request goes out."""
        self.in_flight += 1
        if self.rate is not None:
            self._allowance -= 1
        self._count(now, 1)

    def answered(self, now: float) -> None:
        """One that served came back."""
        self.in_flight -= 1
        self.last_answer = now
        self._failures, self._hold_seconds = 0, 0.0
        self._end_of_answer(is_overload=False)

    def failed(self, now: float, *, is_overload: bool) -> None:
        """One failed, other than by a rate limit."""
        self.in_flight -= 1
        self._end_of_answer(is_overload=is_overload)
        self._failure(now)

    def refused(self, now: float, sent_at: float, retry_after_seconds: float | None) -> None:
        """One came back with 429; `sent_at` is when it was sent."""
        self.in_flight -= 1
        self._count(now, -1)
        if retry_after_seconds is not None:
            self._asked_until = max(self._asked_until, now + retry_after_seconds)
        if sent_at >= self._last_cut:
            admitted = self._admitted_rate(now)
            self._grow_rate(now)
            self.rate = max(min(admitted, self.rate or math.inf) * RATE_MARGIN, MIN_RATE)
            self._allowance, self._allowance_at = min(self._allowance, 0.0), now
            self._last_cut = now
        self._last_refusal = now
        self._failure(now)

    def _failure(self, now: float) -> None:
        if self._failures == 0:
            self._failing_since = now
        self._failures += 1
        lasting = self._failures >= BREAKER_FAILURES and now - self._failing_since >= BREAKER_SECONDS
        if (lasting and not self.is_held) or (self.is_held and now >= self._held_until):
            doubled = min(self._hold_seconds * 2, MAX_HOLD_SECONDS) or FIRST_HOLD_SECONDS
            self._hold_seconds = doubled
            self._held_until = now + max(doubled, self._asked_until - now)

    def _end_of_answer(self, *, is_overload: bool) -> None:
        self._round_answers += 1
        self._round_overloads += is_overload
        if self._is_starting and not is_overload:
            self.limit = min(self.limit + 1, self.window)
        if self._round_answers < self.limit:
            return
        if self._round_overloads > OVERLOAD_SHARE * self._round_answers:
            self.limit, self._is_starting = max(self.limit * DECREASE, 1.0), False
        elif not self._is_starting:
            self.limit = min(self.limit + 1, self.window)
        self._round_answers = self._round_overloads = 0

    def _count(self, now: float, amount: int) -> None:
        """Requests sent, less those refused, in slices of time."""
        if self._sent and now - self._sent[-1][0] < RATE_MEMORY_SECONDS / 20:
            start, count = self._sent[-1]
            self._sent[-1] = (start, count + amount)
            return
        self._sent.append((now, amount))
        while self._sent[0][0] < now - RATE_MEMORY_SECONDS:
            self._sent.popleft()

    def _admitted_rate(self, now: float) -> float:
        since = max(now - RATE_MEMORY_SECONDS, self._started)
        count = sum(count for start, count in self._sent if start >= since)
        return count / max(now - since, 0.1)

    def _grow_rate(self, now: float) -> None:
        """Let the rate creep up, and requests of the time that passed through."""
        if self.rate is None:
            return
        seconds = now - self._allowance_at
        quiet = now - self._last_refusal
        growth = RATE_GROWTH_PER_SECOND * 2 ** min(quiet / RATE_MEMORY_SECONDS, 10)
        self.rate *= 1 + min(growth, MAX_RATE_GROWTH_PER_SECOND) * seconds
        if self.rate > MAX_RATE:
            self.rate = None  # nothing limits any more
            return
        self._allowance = min(self._allowance + self.rate * seconds, max(1.0, self.rate * BURST_SECONDS))
        self._allowance_at = now
