"""Disturbed runs end as if nothing had happened, or refuse with one clear word; each kind of disturbance comes once."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.e2e.torture import Arena, deck, how_to_repeat, open_arena, play
from tests.helpers.disturbances import KINDS

SEED = 8
ROUNDS = 20


@pytest.fixture(scope="module")
def arena(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Arena]:
    with open_arena(tmp_path_factory.mktemp("torture"), SEED) as opened:
        yield opened


@pytest.mark.slow
@pytest.mark.parametrize(("number", "kind"), list(enumerate(deck(SEED, list(KINDS), ROUNDS))))
def test_round(arena: Arena, number: int, kind: str) -> None:
    outcome = play(arena, number, kind)
    if outcome.result == "skipped":
        pytest.skip(outcome.verdict)
    assert outcome.result == "held", f"{outcome}\n{how_to_repeat(outcome, arena)}"


def test_every_kind_has_its_round() -> None:
    assert set(deck(SEED, list(KINDS), ROUNDS)) == set(KINDS)
