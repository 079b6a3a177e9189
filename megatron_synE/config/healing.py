"""What a run does about spikes and about numbers that are not finite."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class HealingConfig:
    """Incidents are recorded with the ids of the documents concerned, in metrics.jsonl and in the checkpoint.

    A spike is a loss, a component's loss or a gradient norm whose robust z-score (x - median) / (1.4826 · MAD) over the
    last `window_steps` steps exceeds `threshold`.
    """

    spike: Literal["ignore", "record", "skip", "rollback"] = "record"
    """At a spike: nothing; only record it; leave this step's update out; or go back to the last checkpoint and pass
    over the samples."""
    nonfinite: Literal["skip", "rollback"] = "skip"
    """The same at a loss, gradient or weight that is not finite, where training.fail_on_nan is false."""
    threshold: float = 10.0
    """z-score above which a value is a spike."""
    window_steps: int = 128
    """Steps whose values are compared; the first half of a window only fills it."""
    pass_over_steps: int = 1
    """A rollback passes over the samples of the incident's step and of this many minus one before it."""
    max_in_a_row: int = 5
    """More steps than this left out one after the other end the run."""
    max_incidents: int = 50
    """More incidents than this that were skipped or rolled back end the run."""

    def problems(self) -> list[str]:
        """Values outside their range."""
        found = []
        if self.threshold <= 0:
            found.append(f"healing.threshold: {self.threshold} is not positive; use 5 to 20")
        if self.window_steps < 8:
            found.append(f"healing.window_steps: {self.window_steps} is too short for a median; use 8 or more")
        for name in ("pass_over_steps", "max_in_a_row", "max_incidents"):
            if getattr(self, name) < 1:
                found.append(f"healing.{name}: {getattr(self, name)} is not positive; use 1 or more")
        return found
