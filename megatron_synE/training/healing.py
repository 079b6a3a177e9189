"""Which steps are incidents, and what is remembered of them.

A value is judged against the last accepted ones by its robust z-score, (x - median) / (1.4826 · MAD): neither the
median nor the median absolute deviation moves with a single outlier (P. Rousseeuw, C. Croux, Alternatives to the
median absolute deviation, 1993; 1.4826 makes the MAD of a normal distribution its standard deviation).
"""

from __future__ import annotations

import math
import statistics
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

from megatron_synE.config.healing import HealingConfig

MAD_OF_NORMAL = 1.4826
SMALLEST_SPREAD = 1e-3
"""Of the median: values that hardly differ make no spike of a small change."""


Action = Literal["record", "skip", "rollback", "stop"]


@dataclass(frozen=True)
class Incident:
    """A step that was not like the others."""

    step: int
    """Number of the step, from 1."""
    cause: str
    """What was seen, with the number."""
    action: Action
    """What was done about it."""
    samples: list[list[int]]
    """Global samples concerned, as [first, end)."""
    documents: list[dict[str, Any]]
    """Per component and epoch: corpus, and the numbers of the documents that these samples read."""
    resumed_from_step: int | None = None
    """Step of the checkpoint that a rollback went back to."""

    def describe(self) -> str:
        """Cause and action in a line."""
        done = {
            "record": "recorded",
            "skip": "the step's update was left out",
            "rollback": f"back to step {self.resumed_from_step}, samples {_listed(self.samples)} are passed over",
            "stop": "the run ends",
        }
        return f"{self.cause}; {done[self.action]}"


class SpikeDetector:
    """Windows of the last accepted values of each series: loss, gradient norm and the components' losses."""

    def __init__(self, config: HealingConfig, windows: Mapping[str, Sequence[float]] | None = None) -> None:
        self._config = config
        self._windows: dict[str, deque[float]] = {}
        for name, values in (windows or {}).items():
            self._windows[name] = deque((float(value) for value in values), config.window_steps)

    def spike(self, values: Mapping[str, float]) -> str | None:
        """What is a spike among these values, largest z-score first named; None where nothing is."""
        scores = {name: self._score(name, value) for name, value in values.items() if math.isfinite(value)}
        worst = max(scores, key=lambda name: scores[name], default=None)
        if worst is None or scores[worst] <= self._config.threshold:
            return None
        median = statistics.median(self._windows[worst])
        return f"{worst} {values[worst]:.6g}: {scores[worst]:.1f} robust deviations above the median {median:.6g}"

    def accept(self, values: Mapping[str, float]) -> None:
        """Remember the values of a step that counts."""
        for name, value in values.items():
            if math.isfinite(value):
                self._windows.setdefault(name, deque(maxlen=self._config.window_steps)).append(value)

    def to_json(self) -> dict[str, list[float]]:
        """The windows, so that a resumed run judges as an uninterrupted one."""
        return {name: list(window) for name, window in self._windows.items()}

    def _score(self, name: str, value: float) -> float:
        window = self._windows.get(name, ())
        if len(window) < self._config.window_steps // 2:
            return 0.0
        median = statistics.median(window)
        spread = MAD_OF_NORMAL * statistics.median(abs(other - median) for other in window)
        return (value - median) / max(spread, SMALLEST_SPREAD * abs(median), math.ulp(1.0))


class IncidentLog:
    """The incidents of a run, and the bounds on them."""

    def __init__(self, config: HealingConfig, incidents: Sequence[Mapping[str, Any]] = (), in_a_row: int = 0) -> None:
        self._config = config
        self.incidents = [Incident(**incident) for incident in incidents]
        self.in_a_row = in_a_row

    def add(self, incident: Incident) -> None:
        """Keep it; counts what was not only recorded."""
        self.incidents.append(incident)
        if incident.action in ("skip", "rollback"):
            self.in_a_row += 1

    def step_counts(self) -> None:
        """A step was as it should be."""
        self.in_a_row = 0

    def exceeded(self) -> str | None:
        """Which bound the run is past, as `field: count`; None while it may go on."""
        acted = sum(incident.action in ("skip", "rollback") for incident in self.incidents)
        if self.in_a_row > self._config.max_in_a_row:
            return f"healing.max_in_a_row: {self.in_a_row} incidents without a good step between them"
        if acted > self._config.max_incidents:
            return f"healing.max_incidents: {acted} incidents"
        return None

    def to_json(self) -> dict[str, Any]:
        """For the checkpoint."""
        return {"incidents": [asdict(incident) for incident in self.incidents], "in_a_row": self.in_a_row}


def _listed(samples: Sequence[Sequence[int]]) -> str:
    return ", ".join(f"{first}-{end - 1}" for first, end in samples)
