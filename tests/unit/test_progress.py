"""What is said of long work: a live line on a terminal, sparse plain lines elsewhere."""

from __future__ import annotations

import io
import re

import pytest

from megatron_synE import progress
from megatron_synE.progress import ProgressBar, ProgressLine, amount, duration


class Clock:
    """Seconds that pass when a test says so."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.seconds = 1000.0
        monkeypatch.setattr(progress.time, "monotonic", lambda: self.seconds)


class Terminal(io.StringIO):
    """A standard error that is a terminal."""

    def isatty(self) -> bool:
        return True


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    return Clock(monkeypatch)


def test_progress_is_plain_and_rare_without_a_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    progress = ProgressLine(first_step=0, last_step=50, show=True)
    for step in range(1, 51):
        progress.step(step, "loss 1")
    progress.note("done")
    progress.close()
    assert capsys.readouterr().out.splitlines() == ["step 1/50  loss 1", "step 50/50  loss 1", "done"]


def test_what_is_done_beside_steps_is_told_now_and_then(clock: Clock, capsys: pytest.CaptureFixture[str]) -> None:
    line = ProgressLine(first_step=0, last_step=2, show=True)
    line.beside(0, "evaluating, 0%")
    line.step(1, "loss 2")
    for number in range(40):
        clock.seconds += 1
        line.beside(1, f"evaluating, {number / 40:.0%}")
    line.step(2, "loss 1")
    line.beside(2, "evaluating, 0%")
    told = ["step 1/2  loss 2", "step 1/2  evaluating, 38%", "step 1/2  evaluating, 78%", "step 2/2  loss 1"]
    assert capsys.readouterr().out.splitlines() == told


def test_silent_processes_print_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    progress = ProgressLine(first_step=0, last_step=2, show=False)
    progress.step(2, "loss 1")
    progress.note("done")
    assert capsys.readouterr().out == ""


def test_short_work_says_nothing_in_a_log(clock: Clock, capsys: pytest.CaptureFixture[str]) -> None:
    with ProgressBar("web", 100, "documents") as bar:
        for _ in range(100):
            clock.seconds += 0.1
            bar.advance(1)
    assert capsys.readouterr() == ("", "")


def test_long_work_says_a_line_now_and_then_with_the_time_left(
    clock: Clock, capsys: pytest.CaptureFixture[str]
) -> None:
    with ProgressBar("web", 1000, "documents", done=200) as bar:
        for _ in range(50):
            clock.seconds += 1
            bar.advance(10)
    out, err = capsys.readouterr()
    assert out == ""
    assert err.splitlines() == [
        "web: 36% of 1,000 documents, 10 documents/s, 0:01:04 left",
        "web: 52% of 1,000 documents, 10 documents/s, 0:00:48 left",
        "web: 68% of 1,000 documents, 10 documents/s, 0:00:32 left",
    ]


def test_a_hidden_bar_is_silent_everywhere(clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    for stderr in (io.StringIO(), Terminal()):
        monkeypatch.setattr(progress.sys, "stderr", stderr)
        with ProgressBar("web", 100, "documents", show=False) as bar:
            clock.seconds += 100
            bar.at(50)
        assert stderr.getvalue() == ""


def test_a_terminal_gets_a_live_line(monkeypatch: pytest.MonkeyPatch) -> None:
    stderr = Terminal()
    monkeypatch.setattr(progress.sys, "stderr", stderr)
    monkeypatch.setenv("COLUMNS", "120")
    with ProgressBar("[web]", 400, "documents") as bar:
        bar.at(100)
    text = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", stderr.getvalue())
    assert "[web]: 25% of 400 documents" in text and "left" in text


def test_unknown_and_empty_totals_are_no_division() -> None:
    assert ProgressBar("x", None, "documents", done=3, show=False).text() == "x: 3 documents"
    assert ProgressBar("x", 0, "documents", show=False).text() == "x"


def test_units_are_readable() -> None:
    assert amount(1234567, "documents") == "1,234,567 documents" and amount(0.5, "documents") == "0.5 documents"
    assert amount(1.5e9, "bytes") == "1.5 GB" and amount(12, "bytes") == "12 bytes"
    assert duration(3661) == "1:01:01" and duration(86400 * 2 + 5) == "2 days, 0:00:05"
