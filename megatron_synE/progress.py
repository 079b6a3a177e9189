"""How far long work is: a live line on a terminal, elsewhere a plain line now and then."""

from __future__ import annotations

import math
import sys
import time
from types import TracebackType
from typing import Any, Self

QUIET_INTERVAL_SECONDS = 15.0
BYTES_UNITS = ((1e12, "TB"), (1e9, "GB"), (1e6, "MB"), (1e3, "kB"))


class ProgressBar:
    """Work of a known size, on stderr: how much is done, how fast, and the time left. Work of seconds says nothing.

    Args:
        what: stands in front, for instance a corpus.
        total: its size in `unit`; None where nobody knows it.
        unit: plural noun; `bytes` are written as MB or GB.
        done: what an earlier start has done; it does not count for the speed.
        show: False makes it silent, for instance in all processes but one.
    """

    def __init__(
        self, what: str, total: float | None, unit: str, *, done: float = 0, show: bool = True
    ) -> None:
        self.what, self.total, self.unit, self.done = what, total, unit, done
        self._show, self._first, self._began = show, done, time.monotonic()
        self._last_print = self._began
        self._live: Any = None
        if show and sys.stderr.isatty():
            from rich.console import Console
            from rich.progress import BarColumn, Progress, TextColumn

            # The text is made here, as it is for a log: time left from all that was done, not from the last seconds.
            self._live = Progress(
                BarColumn(bar_width=20), TextColumn("{task.description}", markup=False),
                console=Console(file=sys.stderr), transient=True,
            )  # fmt: skip
            self._live.start()
            self._task = self._live.add_task(self.text(), total=total, completed=done)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def advance(self, amount: float) -> None:
        """So much more is done."""
        self.at(self.done + amount)

    def at(self, done: float) -> None:
        """So much of the total is done."""
        self.done, now = done, time.monotonic()
        if self._live is not None:
            self._live.update(self._task, completed=done, total=self.total, description=self.text())
        elif self._show and now - self._last_print > QUIET_INTERVAL_SECONDS:
            self._last_print = now
            print(self.text(), file=sys.stderr, flush=True)

    def text(self) -> str:
        """`web: 40 % of 10,000 documents, 12 documents/s, 0:08:20 left`."""
        seconds = max(time.monotonic() - self._began, 1e-9)
        speed = (self.done - self._first) / seconds
        speed_text = [f"{amount(speed, self.unit)}/s"] if speed > 0 else []
        if not self.total:
            return ", ".join([f"{self.what}: {amount(self.done, self.unit)}" if self.done else self.what, *speed_text])
        share = f"{self.what}: {min(self.done / self.total, 1):.0%} of {amount(self.total, self.unit)}"
        left = [f"{duration(max(self.total - self.done, 0) / speed)} left"] if speed > 0 else []
        return ", ".join([share, *speed_text, *left])

    def close(self) -> None:
        """Give the terminal back."""
        if self._live is not None:
            self._live.stop()
            self._live = None


class ProgressLine:
    """The trainer's: steps with what is to be said of each, and lines that stay."""

    def __init__(self, *, first_step: int, last_step: int, show: bool) -> None:
        self._show = show
        self.last_step = last_step
        self._last_print, self._last_beside = -math.inf, time.monotonic()
        self._live: Any = None
        if show and sys.stderr.isatty():
            from rich.console import Console
            from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
            from rich.table import Column

            # On a narrow terminal the text is cut at its end; count and remaining time stay whole.
            self._live = Progress(
                MofNCompleteColumn(table_column=Column(no_wrap=True, min_width=2 * len(str(last_step)) + 1)),
                BarColumn(bar_width=10),
                TimeRemainingColumn(table_column=Column(no_wrap=True, min_width=7)),
                TextColumn("{task.description}", table_column=Column(no_wrap=True, overflow="ellipsis", ratio=1)),
                console=Console(file=sys.stderr),
                expand=True,
            )
            self._live.start()
            self._task = self._live.add_task("", total=last_step, completed=first_step)

    def step(self, step: int, text: str) -> None:
        """Show the state after `step` steps."""
        is_due = step == self.last_step or time.monotonic() - self._last_print > QUIET_INTERVAL_SECONDS
        if self._tell(step, text, is_due):
            self._last_print = time.monotonic()

    def beside(self, step: int, text: str) -> None:
        """Show what is done after `step` steps and is no step itself; a log says it where it takes long."""
        quiet_since = max(self._last_print, self._last_beside)
        if self._tell(step, text, time.monotonic() - quiet_since > QUIET_INTERVAL_SECONDS):
            self._last_beside = time.monotonic()

    def _tell(self, step: int, text: str, is_due: bool) -> bool:
        """Show a line; whether a log has it now."""
        if self._live is not None:
            self._live.update(self._task, completed=step, total=self.last_step, description=text)
        elif self._show and is_due:
            print(f"step {step}/{self.last_step}  {text}", flush=True)
            return True
        return False

    def note(self, text: str) -> None:
        """Lines that stay."""
        if self._live is not None:
            self._live.console.print(text, markup=False, highlight=False)
        elif self._show:
            print(text, flush=True)

    def close(self) -> None:
        """Give the terminal back."""
        if self._live is not None:
            self._live.stop()


def amount(value: float, unit: str) -> str:
    """`10,000 documents`, `0.52 documents`, `1.2 GB`."""
    if unit == "bytes":
        size, name = next(((size, name) for size, name in BYTES_UNITS if value >= size), (1, "bytes"))
        return f"{value / size:.1f} {name}" if size > 1 else f"{value:.0f} bytes"
    return f"{value:,.0f} {unit}" if value >= 10 or value == int(value) else f"{value:.2g} {unit}"


def duration(seconds: float) -> str:
    """`1:02:03`, `3 days, 1:02:03`."""
    days, rest = divmod(round(seconds), 86400)
    clock = f"{rest // 3600}:{rest // 60 % 60:02d}:{rest % 60:02d}"
    return f"{days} days, {clock}" if days else clock
