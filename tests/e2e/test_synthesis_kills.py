"""A few rounds of `python -m tests.e2e.synthesis_kills`."""

from __future__ import annotations

from pathlib import Path

from tests.e2e.synthesis_kills import play


def test_a_job_that_is_killed_ends_as_one_that_is_not(tmp_path: Path) -> None:
    toll = play(tmp_path, num_kills=6, num_snippets=300, seed=1, say=lambda text: None)
    assert toll.num_kills >= 1
