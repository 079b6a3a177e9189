"""What is measured during a run, and when."""

from __future__ import annotations

from dataclasses import dataclass, field

from megatron_synE.config.benchmarks import BenchmarksConfig


@dataclass(frozen=True)
class EvaluationConfig:
    """Loss on each component's held-out set (data.heldout_fraction, data.heldout_samples), and benchmarks."""

    interval_steps: int | None = None
    """Steps between two evaluations; none evaluates at the start and at the end only."""
    at_start: bool = True
    """Evaluate before the first step: what the later evaluations are compared with."""
    at_end: bool = True
    """Evaluate after the last step."""
    benchmarks: BenchmarksConfig = field(default_factory=BenchmarksConfig)
    """Benchmarks, beside the held-out loss."""

    def problems(self) -> list[str]:
        """Values outside their range."""
        found = []
        if self.interval_steps is not None and self.interval_steps < 1:
            found.append(f"evaluation.interval_steps: {self.interval_steps} is not positive; use 1 or more, or null")
        return found + self.benchmarks.problems()
