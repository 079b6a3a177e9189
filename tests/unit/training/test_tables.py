"""What the console says of few components and of many."""

from __future__ import annotations

import pytest
from rich.cells import cell_len

from megatron_synE.data.state import Decision
from megatron_synE.training.evaluate import EvaluationResult
from megatron_synE.training.tables import decision_text, evaluation_text

NAMES = ["book_en", "web_zh/法律", "web_zh/history_and_geography", "web_zh/others", "web_zh/science"]


def result(shift: float = 0.0, count: int = 5) -> EvaluationResult:
    losses = {name: 2.0 + shift + number / 10 for number, name in enumerate(NAMES[:count])}
    return EvaluationResult(losses, {name: 1000 * (number + 1) for number, name in enumerate(NAMES[:count])})


def test_few_components_are_a_line() -> None:
    assert evaluation_text(result(count=2), None) == "held-out loss  book_en 2.0000  web_zh/法律 2.1000"


def test_many_components_are_a_table() -> None:
    """Stumble: 22 topics were one paragraph."""
    before = EvaluationResult({name: 2.5 for name in NAMES[:4]}, {})
    title, head, *rows, mean = evaluation_text(result(), before).splitlines()
    assert title == "held-out loss" and head.split() == ["loss", "change", "perplexity", "tokens"]
    assert rows[0].split() == ["book_en", "2.0000", "-0.5000", "7.389", "1,000"]
    assert rows[4].split() == ["web_zh/science", "2.4000", "11.02", "5,000"], "it was not measured before"
    assert mean.split() == ["mean", "over", "tokens", "2.2667", "15,000"]
    assert {cell_len(line) for line in (head, *rows, mean)} == {cell_len(head)}, "columns stand below each other"
    assert "change" in evaluation_text(result(), None)


def test_sources_that_moved() -> None:
    after = {"old": 0.2, "new": 0.5, "book": 0.3}
    moved = Decision(0, 0, {}, {"old": 0.1, "new": 0.6, "book": 0.3}, after, changed=True, moves="sources")
    assert decision_text(moved) == "source shares  old 0.100→0.200  new 0.600→0.500"


@pytest.mark.parametrize("count, lines", [(4, 1), (5, 7)])
def test_moved_shares(count: int, lines: int) -> None:
    shares = {name: 0.2 for name in NAMES}
    after = {name: 0.2 if number >= count else 0.25 for number, name in enumerate(NAMES)}
    text = decision_text(Decision(0, 0, dict.fromkeys(NAMES, 9.0), shares, after, changed=True))
    assert len(text.splitlines()) == lines
    assert text.count("0.250") == count and ("0.200→0.250" in text) == (lines == 1)
