"""What a piece of work tells its bar."""

from __future__ import annotations

from types import ModuleType
from typing import Any

import pytest

from megatron_synE.progress import ProgressBar


class RecordedBar(ProgressBar):
    """A bar that remembers what it was told; it shows nothing."""

    def __init__(self, what: str, total: float | None, unit: str, **options: Any) -> None:
        super().__init__(what, total, unit, **{**options, "show": False})
        self.first, self.told = self.done, list[float]()

    def at(self, done: float) -> None:
        super().at(done)
        self.told.append(done)


def recorded_bars(monkeypatch: pytest.MonkeyPatch, module: ModuleType) -> list[RecordedBar]:
    """The bars that a module opens from now on, in order."""
    bars: list[RecordedBar] = []

    def open_bar(*arguments: Any, **options: Any) -> RecordedBar:
        bars.append(RecordedBar(*arguments, **options))
        return bars[-1]

    monkeypatch.setattr(module, "ProgressBar", open_bar)
    return bars


def is_complete(bar: RecordedBar) -> bool:
    """Whether it rose from where it began, in several moves, to its total and not beyond."""
    return len(bar.told) > 1 and bar.told == sorted(bar.told) and bar.told[-1] == bar.total
