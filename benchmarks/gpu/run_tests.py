"""Runs tests and prints what became of them: passed, failed (names) and skipped, as JSON.

    python benchmarks/gpu/run_tests.py [pytest's arguments]

Ends with 0 where something ran and nothing failed, with 77 where nothing ran.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Sequence

import pytest
from runner import SKIPPED

PRINT_EVERY_SECONDS = 10.0


class Tally:
    """Counts outcomes as pytest reports them."""

    def __init__(self) -> None:
        self.passed, self.skipped = 0, 0
        self.failed: list[str] = []
        self._last_print = time.monotonic()

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.failed:
            self.failed.append(f"{report.nodeid} ({report.when})")
        elif report.skipped:
            self.skipped += 1
        elif report.when == "call":
            self.passed += 1
        if report.failed or time.monotonic() - self._last_print > PRINT_EVERY_SECONDS:
            self.print()

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        if report.failed:
            self.failed.append(f"{report.nodeid} (collection)")

    def print(self) -> None:
        """The counts so far, on a line of their own."""
        self._last_print = time.monotonic()
        print("\n" + json.dumps({"passed": self.passed, "failed": self.failed, "skipped": self.skipped}), flush=True)


def main(arguments: Sequence[str]) -> int:
    tally = Tally()
    status = pytest.main(["-q", "-rs", "--tb=short", *arguments], plugins=[tally])
    tally.print()
    if tally.failed or status not in (pytest.ExitCode.OK, pytest.ExitCode.NO_TESTS_COLLECTED):
        return 1
    if not tally.passed:
        print("no test could run here")
        return SKIPPED
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
