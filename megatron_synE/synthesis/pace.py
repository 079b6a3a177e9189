"""How many requests may be in flight, how many a second, and when to leave the server alone.

- The limit in flight follows the load: it doubles from a small start, then grows by one a round and shrinks by a factor
  when more than half of a round failed by overload (additive increase, multiplicative decrease). A round is as many
  answers as the limit, and so many that chance does not decide.
- The rate follows rate limits: there is none until a 429. Then it is what the server admits, and creeps up until some
  are refused again. A limit in flight alone would find no even pace: refusals come back at once, and their slots would
  knock again at once. Where a lower rate does not make refusals rarer, they are not about the rate: so many are put up
  with from then on.
- The breaker opens when nothing but failures came for a while: nothing is sent for as long as the server asks for, or
  twice as long as the last time; then a few requests try.

Times are seconds of one clock, which the caller reads.
"""

from __future__ import annotations

import math

FIRST_LIMIT = 16
DECREASE = 0.7
OVERLOAD_SHARE, ROUND_ANSWERS = 0.5, 20
PERIOD_SECONDS, PERIOD_REQUESTS = 1.0, 20
"""Refusals are counted over periods that are at least so long and have so many requests."""
PLAIN_REFUSALS, PLAIN_SHARE, SHORT_PERIOD_SECONDS = 4, 0.3, 0.25
"""… or, where at least so many refusals are such a share, so long; as is the first period."""
RATE_MARGIN = 0.98
MAX_CUT = 0.92
"""A rate is cut to what was admitted, but not by more at a time: a server that wants even gaps admits every second one
of requests that come a little too fast."""
RATE_GROWTH_PER_SECOND = 0.01
"""After a cut; STEADY_SECONDS later it doubles every DOUBLING_SECONDS, up to MAX_RATE_GROWTH_PER_SECOND."""
STEADY_SECONDS, DOUBLING_SECONDS = 4.0, 2.0
MAX_RATE_GROWTH_PER_SECOND = 0.5
REFUSED_SHARE = 0.03
"""So many refusals are no reason for a cut."""
MAX_USUAL_SHARE = 0.5
"""Most refusals that are put up with as being usual."""
NO_HELP = 0.8, 0.7
"""Cuts have not helped where such a part of the refusals is left, at such a part of the rate that was admitted once."""
MIN_RATE, MAX_RATE = 0.2, 1e6
BURST_SECONDS = 0.02
"""Requests of so much time may go at once."""
BREAKER_FAILURES = 16
BREAKER_SECONDS = 2.0
"""So many failures in a row over so much time open the breaker."""
TRIALS = 4
"""Requests that try after a hold: of a server with many faults one alone would tell little."""
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
        self._is_starting = True
        self._round_answers = self._round_overloads = 0
        self._allowance, self._allowance_at = 0.0, now
        self._period_since, self._sent, self._refused = now, 0, 0
        self._usual_share = 0.0
        self._before_cuts: tuple[float, float, float] | None = None
        """Rate that was sent, rate that was admitted and refused share before the first cut since a period without."""
        self._last_cut = now
        self._failures, self._failing_since = 0, now
        self._hold_seconds, self._held_until, self._trials = 0.0, -math.inf, 0
        self._asked_until = -math.inf

    def delay(self, now: float) -> float:
        """0 where a request may be sent; else the seconds until that may be so, inf: not before one comes back."""
        if now < self._held_until:
            return self._held_until - now
        if self.in_flight >= int(self.limit) or (self.is_held and not self._trials):
            return math.inf
        if self.rate is None:
            return 0.0
        self._grow_rate(now)
        return 0.0 if self.rate is None or self._allowance >= 1 else max((1 - self._allowance) / self.rate, 1e-4)

    @property
    def is_held(self) -> bool:
        """Whether the breaker is open, or a few requests try."""
        return self._hold_seconds > 0

    def failing_seconds(self, now: float) -> float:
        """Since when nothing but failures came; 0 where the last one served."""
        return now - self._failing_since if self._failures else 0.0

    def send(self, now: float) -> None:
        """A request goes out."""
        self.in_flight += 1
        if self.rate is not None:
            self._allowance -= 1
        self._sent += 1
        self._trials -= self._trials > 0

    def answered(self) -> None:
        """One that served came back."""
        self.in_flight -= 1
        self._failures, self._hold_seconds, self._held_until, self._trials = 0, 0.0, -math.inf, 0
        self._end_of_answer(is_overload=False)

    def failed(self, now: float, *, is_overload: bool) -> None:
        """One failed, other than by a rate limit."""
        self.in_flight -= 1
        self._end_of_answer(is_overload=is_overload)
        self._failure(now)

    def refused(self, now: float, sent_at: float, retry_after_seconds: float | None) -> None:
        """One that was sent at `sent_at` came back with 429."""
        self.in_flight -= 1
        if self.rate is None and self._refused == 0:
            self._period_since, self._sent, self._refused = now, 1, 1
        elif sent_at >= self._period_since:
            self._refused += 1
        if retry_after_seconds is not None:
            self._asked_until = max(self._asked_until, now + retry_after_seconds)
        if self.rate is None and self._is_period_over(now):
            self._end_period(now)
        self._failure(now)

    def _failure(self, now: float) -> None:
        if self._failures == 0:
            self._failing_since = now
        self._failures += 1
        lasting = self._failures >= BREAKER_FAILURES and now - self._failing_since >= BREAKER_SECONDS
        has_tried = self.is_held and not self._trials and not self.in_flight
        if (lasting and not self.is_held) or has_tried:
            self._hold_seconds = min(self._hold_seconds * 2, MAX_HOLD_SECONDS) or FIRST_HOLD_SECONDS
            self._held_until = now + max(self._hold_seconds, self._asked_until - now)
            self._trials = TRIALS

    def _end_of_answer(self, *, is_overload: bool) -> None:
        self._round_answers += 1
        self._round_overloads += is_overload
        if not is_overload:
            self.limit = min(self.limit + (1 if self._is_starting else 1 / self.limit), self.window)
        if self._round_answers < max(self.limit, ROUND_ANSWERS):
            return
        if self._round_overloads > OVERLOAD_SHARE * self._round_answers:
            self.limit, self._is_starting = max(self.limit * DECREASE, 1.0), False
        self._round_answers = self._round_overloads = 0

    def _grow_rate(self, now: float) -> None:
        """Let the rate follow the refusals of the last period, and let through requests of the time that passed."""
        assert self.rate is not None
        if self._is_period_over(now):
            self._end_period(now)
        seconds = now - self._allowance_at
        if self._refused <= self._usual_share * self._sent + 1:
            doublings = max(now - self._last_cut - STEADY_SECONDS, 0.0) / DOUBLING_SECONDS
            growth = RATE_GROWTH_PER_SECOND * 2 ** min(doublings, 10)
            self.rate *= 1 + min(growth, MAX_RATE_GROWTH_PER_SECOND) * seconds
        self._allowance = min(self._allowance + self.rate * seconds, max(1.0, self.rate * BURST_SECONDS))
        self._allowance_at = now
        if self.rate > MAX_RATE:
            self.rate = None  # nothing limits any more

    def _is_period_over(self, now: float) -> bool:
        seconds, is_first = now - self._period_since, self.rate is None
        is_plain = not is_first and self._refused >= PLAIN_REFUSALS and self._refused > PLAIN_SHARE * self._sent
        if self._sent < PERIOD_REQUESTS and not is_plain:
            return False
        return seconds >= (SHORT_PERIOD_SECONDS if is_first or is_plain else PERIOD_SECONDS)

    def _end_period(self, now: float) -> None:
        share = self._refused / self._sent
        chance = 2 * math.sqrt(self._usual_share * (1 - self._usual_share) / self._sent)
        if share > self._usual_share + REFUSED_SHARE + chance:
            self._cut(now)
        else:
            self._before_cuts = None
            self._period_since, self._sent, self._refused = now, 0, 0

    def _cut(self, now: float) -> None:
        """To what was admitted; or, where earlier cuts did not help, back to where they began."""
        seconds = now - self._period_since
        share, sent = self._refused / self._sent, self._sent / seconds
        admitted = sent * (1 - share)
        if self._before_cuts is None:
            self._before_cuts = sent, admitted, share
        first_sent, first_admitted, first_share = self._before_cuts
        is_no_help = share > NO_HELP[0] * first_share and sent < NO_HELP[1] * first_admitted
        if is_no_help and share <= MAX_USUAL_SHARE and self._sent >= PERIOD_REQUESTS:
            self._usual_share, self.rate, self._before_cuts = share, first_sent, None
        else:
            least = MIN_RATE if self.rate is None else self.rate * MAX_CUT
            self.rate = max(admitted * RATE_MARGIN, least, MIN_RATE)
            self._last_cut = now
        self._allowance, self._allowance_at = min(self._allowance, 0.0), now
        self._period_since, self._sent, self._refused = now, 0, 0
