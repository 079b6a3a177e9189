"""Runs that are told to stop end properly: each signal, target and phase at least once."""

from __future__ import annotations

import signal
from collections.abc import Iterator

import pytest

from tests.e2e.signals import signalled
from tests.e2e.torture import Arena, open_arena
from tests.helpers.arena import PHASES, Phase
from tests.helpers.disturbances import STOP_SIGNALS

CASES: list[tuple[Phase, str, signal.Signals]] = [
    ("start-up", "rank", signal.SIGTERM),
    ("start-up", "group", signal.SIGINT),
    ("training", "agent", signal.SIGTERM),
    ("training", "rank", signal.SIGINT),
    ("evaluation", "rank", signal.SIGUSR1),
    ("saving", "agent", signal.SIGUSR1),
]


@pytest.fixture(scope="module")
def arena(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Arena]:
    with open_arena(tmp_path_factory.mktemp("signals"), seed=3) as opened:
        yield opened


@pytest.mark.slow
@pytest.mark.parametrize("number", range(len(CASES)))
def test_proper_end(arena: Arena, number: int) -> None:
    outcome = signalled(arena, number, *CASES[number])
    assert outcome.result == "held", str(outcome)


def test_the_cases_hold_everything() -> None:
    phases, targets, numbers = (set(part) for part in zip(*CASES, strict=True))
    assert (phases, targets, numbers) == (set(PHASES), {"rank", "agent", "group"}, set(STOP_SIGNALS))
