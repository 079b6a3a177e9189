"""What is measured during a run, and when."""

from __future__ import annotations

from dataclasses import dataclass, field

from megatron_synE.config.benchmarks import BenchmarksConfig
from megatron_synE.config.data import DataConfig
from megatron_synE.config.guard import GuardConfig


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
    guard: GuardConfig = field(default_factory=GuardConfig)
    """What is done where the run forgets."""

    def problems(self) -> list[str]:
        """Values outside their range."""
        found = []
        if self.interval_steps is not None and self.interval_steps < 1:
            found.append(f"evaluation.interval_steps: {self.interval_steps} is not positive; use 1 or more, or null")
        return found + self.benchmarks.problems()

    def guard_problems(self, data: DataConfig) -> list[str]:
        """What the guard's bounds need and the data or these fields do not give."""
        found, benchmarks = self.guard.problems(data, self.benchmarks.tasks), self.benchmarks
        if self.guard.max_loss_increase.by_name(data):
            if not self.at_start:
                found.append("evaluation.at_start: evaluation.guard compares with the loss at step 0; set it to true")
            if self.interval_steps is None:
                found.append("evaluation.interval_steps: none, so evaluation.guard would look only at the end; give it")
        if self.guard.max_benchmark_drop:
            where = "evaluation.benchmarks"
            if not benchmarks.at_start:
                found.append(f"{where}.at_start: evaluation.guard compares with the accuracy at step 0; set it to true")
            if benchmarks.interval_steps is None:
                found.append(f"{where}.interval_steps: none, so evaluation.guard would look only at the end; give it")
        return found
