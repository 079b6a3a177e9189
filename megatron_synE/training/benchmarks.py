"""What the loop knows of benchmarks: who measures them, and what comes of it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

METRICS = ("acc", "acc_norm", "acc_bytes")
"""Share of items whose right choice has the largest log-likelihood: as it is, by character, by byte of UTF-8."""


@dataclass(frozen=True)
class BenchmarkScores:
    """What a model scored, by task."""

    scores: dict[str, dict[str, float]]
    """Task → metric (acc, acc_norm, acc_bytes) → share of the items, and `num_items`."""
    fingerprints: dict[str, str]
    """Task → hash of all that was asked; where it is another one, results cannot be compared."""

    def changes_since(self, earlier: BenchmarkScores) -> dict[str, dict[str, float]]:
        """Task → metric → how much higher it is now, of those tasks that asked the same."""
        same = [task for task, asked in self.fingerprints.items() if earlier.fingerprints.get(task) == asked]
        return {
            task: {
                metric: value - earlier.scores[task][metric]
                for metric, value in self.scores[task].items()
                if metric != "num_items" and metric in earlier.scores[task]
            }
            for task in same
        }


class Benchmarks(Protocol):
    """Measures the model that is being trained, where it lies. Called by all processes alike."""

    @property
    def fingerprints(self) -> Mapping[str, str]:
        """Of the tasks, as in `BenchmarkScores`."""
        ...

    def run(self, between: Callable[[int, int], None]) -> BenchmarkScores:
        """The scores now, the same on every process. Weights, generators and gradients stay as they are.

        Args:
            between: called on all processes after each part of the requests, with how many are answered, and how many
                there are; what it raises on all of them ends the measurement.

        Raises:
            FloatingPointError: a log-likelihood is not finite.
        """
        ...


def scores_to_json(measured: tuple[int, BenchmarkScores] | None) -> dict[str, Any] | None:
    """For state.json: the step, and what was measured after it."""
    if measured is None:
        return None
    return {"step": measured[0], "scores": measured[1].scores, "fingerprints": measured[1].fingerprints}


def scores_from_json(content: Mapping[str, Any] | None) -> tuple[int, BenchmarkScores] | None:
    """What `scores_to_json` wrote.

    Raises:
        AttributeError, KeyError, TypeError, ValueError: it cannot be.
    """
    if content is None:
        return None
    scores = {
        str(task): {str(metric): float(value) for metric, value in values.items()}
        for task, values in content["scores"].items()
    }
    return int(content["step"]), BenchmarkScores(scores, {str(t): str(f) for t, f in content["fingerprints"].items()})
