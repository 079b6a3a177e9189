"""What only the corpora show about a guard's bounds, before anything is trained."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from megatron_synE.config.parse import parse_job
from megatron_synE.training.checks import examine_job
from tests.helpers.runs import write_job


def problems(folder: Path, *overrides: str, **bounds: Any) -> list[str]:
    arguments = write_job(folder, evaluation={"guard": {"max_loss_increase": bounds}})
    return examine_job(parse_job([*arguments, *overrides]), 1).problems


def test_bounds_that_can_be_measured_are_no_problem(tmp_path: Path) -> None:
    assert problems(tmp_path, default=0.1, sources={"web/law": 0.2}) == []


def test_an_unknown_topic_is_named_with_those_there_are(tmp_path: Path) -> None:
    (found,) = problems(tmp_path, sources={"web/physics": 0.2})
    assert "no component 'web/physics'; web has web/maths, web/law" in found


def test_a_source_whose_held_out_part_is_empty_is_named(tmp_path: Path) -> None:
    """The fraction is not 0, but no document falls below it."""
    static = ("--data.adjustment.strategy=static", "--data.sources.book.heldout_fraction=1e-9")
    (found,) = problems(tmp_path, *static, default=0.1)
    assert "book has no held-out tokens" in found and "data.sources.book.heldout_fraction" in found
    assert problems(tmp_path, *static, default=0.1, sources={"book": None}) == []
