"""What is told of processes that come and go."""

from __future__ import annotations

import os

import pytest

from megatron_synE.runtime import processes


def test_a_process_that_is_ending_is_dead_before_its_state_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its connections are closed by then, and whoever loses one asks at once."""
    fields = processes._stat(os.getpid())
    started = processes.start_ticks(os.getpid())
    assert fields is not None and started is not None
    fields[6] = str(int(fields[6]) | 4)
    monkeypatch.setattr(processes, "_stat", lambda pid: fields)
    assert processes.state(os.getpid(), started) == "dead"


def test_this_process_is_alive() -> None:
    started = processes.start_ticks(os.getpid())
    assert started is not None
    assert processes.state(os.getpid(), started) != "dead"
    assert processes.state(os.getpid(), started + 1) == "dead", "the number was given again"
