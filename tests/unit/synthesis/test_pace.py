"""The pace, against simulated servers and a simulated clock."""

from __future__ import annotations

import heapq
import random
from collections import deque
from collections.abc import Callable

import pytest

from megatron_synE.synthesis.pace import FIRST_LIMIT, Pace


class Simulation:
    """Snippets without end, sent at the pace's speed to a server that is a function."""

    def __init__(self, window: int, serve: Callable[[float, int], tuple[str, float]]) -> None:
        self.pace, self.serve, self.now = Pace(window, 0.0), serve, 0.0
        self.served: list[float] = []
        self.refused = 0
        self.events: list[tuple[float, int, str, float]] = []
        self.number = 0
        self.waiting: deque[float] = deque()
        """When snippets that were refused come again: no more of them than the feed has."""
        self.most_in_flight = 0

    def run(self, seconds: float) -> None:
        end = self.now + seconds
        while self.now < end:
            while self.waiting and self.waiting[0] <= self.now:
                self.waiting.popleft()
            delay = self.pace.delay(self.now)
            if len(self.waiting) + self.pace.in_flight >= 4 * self.pace.window:
                delay = max(delay, self.waiting[0] - self.now)
            if delay == 0:
                self.pace.send(self.now)
                self.most_in_flight = max(self.most_in_flight, self.pace.in_flight)
                outcome, latency = self.serve(self.now, self.pace.in_flight)
                self.number += 1
                heapq.heappush(self.events, (self.now + latency, self.number, outcome, self.now))
                continue
            self.now = min(self.now + delay, self.events[0][0] if self.events else end, end)
            while self.events and self.events[0][0] <= self.now:
                self.come_back(*heapq.heappop(self.events)[2:])

    def come_back(self, outcome: str, sent_at: float) -> None:
        if outcome == "served":
            self.pace.answered()
            self.served.append(self.now)
        elif outcome == "refused":
            self.pace.refused(self.now, sent_at, None)
            self.refused += 1
            self.waiting.append(self.now + 1.0)
        else:
            self.pace.failed(self.now, is_overload=outcome == "overload")

    def rate(self, since: float) -> float:
        """Served a second."""
        return sum(time >= since for time in self.served) / (self.now - since)


def token_bucket(rate: float, burst: float, latency: float) -> Callable[[float, int], tuple[str, float]]:
    tokens, at = burst, 0.0

    def serve(now: float, in_flight: int) -> tuple[str, float]:
        nonlocal tokens, at
        tokens, at = min(tokens + (now - at) * rate, burst), now
        if tokens < 1:
            return "refused", 0.002
        tokens -= 1
        return "served", latency

    return serve


def fixed_window(rate: float, seconds: float, latency: float) -> Callable[[float, int], tuple[str, float]]:
    count, window = 0, -1

    def serve(now: float, in_flight: int) -> tuple[str, float]:
        nonlocal count, window
        if int(now / seconds) != window:
            count, window = 0, int(now / seconds)
        count += 1
        return ("served", latency) if count <= rate * seconds else ("refused", 0.002)

    return serve


@pytest.mark.parametrize("rate, burst", [(3.0, 3.0), (20.0, 1.0), (20.0, 20.0), (200.0, 10.0), (200.0, 200.0)])
@pytest.mark.parametrize("latency", [0.0, 0.05, 4.0])
def test_a_rate_limit_is_used_to_nine_tenths_and_more(rate: float, burst: float, latency: float) -> None:
    simulation = Simulation(1024, token_bucket(rate, burst, latency))
    simulation.run(120)
    assert simulation.rate(since=20) > 0.9 * rate
    assert simulation.refused < 0.1 * len(simulation.served) + 2 * 4 * 1024  # it begins with the whole window


def test_a_limit_by_the_second_is_used_to_nine_tenths_and_more() -> None:
    simulation = Simulation(256, fixed_window(50.0, 1.0, 0.05))
    simulation.run(120)
    assert simulation.rate(since=0) > 0.9 * 50


def test_a_rate_limit_that_is_lifted_is_noticed() -> None:
    limited, free = token_bucket(20.0, 2.0, 0.05), token_bucket(1e9, 1e9, 0.05)
    simulation = Simulation(64, lambda now, in_flight: (limited if now < 30 else free)(now, in_flight))
    simulation.run(60)
    assert simulation.rate(since=55) > 0.9 * 64 / 0.05


def test_refusals_by_chance_slow_nothing_down() -> None:
    chance = random.Random(1)
    simulation = Simulation(64, lambda now, in_flight: ("refused" if chance.random() < 0.3 else "served", 0.05))
    simulation.run(60)
    assert simulation.pace.rate is None
    assert simulation.rate(since=30) > 450  # the snippets that wait for their second try leave so many


def test_the_limit_doubles_at_first_and_stays_in_the_window() -> None:
    simulation = Simulation(1024, lambda now, in_flight: ("served", 1.0))
    simulation.run(0.5)
    assert simulation.most_in_flight == FIRST_LIMIT
    simulation.run(7.0)
    assert simulation.most_in_flight == 1024
    simulation.run(5.0)
    assert simulation.pace.in_flight == 1024


def test_a_server_that_breaks_under_load_is_sent_what_it_bears() -> None:
    simulation = Simulation(1024, lambda now, in_flight: ("served" if in_flight <= 100 else "overload", 0.5))
    simulation.run(60)
    assert 60 < simulation.pace.limit < 250
    assert simulation.rate(since=30) > 0.8 * 100 / 0.5


def test_the_breaker_leaves_a_dead_server_alone_and_a_few_requests_try() -> None:
    simulation = Simulation(64, lambda now, in_flight: ("overload" if now < 300 else "served", 0.1))
    simulation.run(10)
    assert simulation.pace.is_held and simulation.pace.failing_seconds(simulation.now) > 9
    sent = simulation.number
    simulation.run(290)
    assert simulation.number - sent < 60
    simulation.run(100)
    assert not simulation.pace.is_held and simulation.rate(since=380) > 0.9 * 64 / 0.1


def test_the_breaker_closes_again_on_a_server_with_many_faults() -> None:
    chance = random.Random(1)

    def serve(now: float, in_flight: int) -> tuple[str, float]:
        if 20 < now < 23:
            return "refused", 0.002
        return ("served" if chance.random() < 0.2 else "fault"), 0.02

    simulation = Simulation(64, serve)
    simulation.run(60)
    assert not simulation.pace.is_held
    assert sum(time > 30 for time in simulation.served) > 0.8 * sum(time < 20 for time in simulation.served)


def test_the_breaker_waits_as_long_as_the_server_asks_for() -> None:
    pace = Pace(4, 0.0)
    for number in range(20):
        pace.send(number * 0.2)
        pace.refused(number * 0.2, number * 0.2, 100.0)
    assert pace.is_held and pace.delay(10.0) == pytest.approx(93.8, abs=5)
