"""Batches, length of the run and logs."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal


@dataclass(frozen=True)
class TrainingConfig:
    """The step and the loop."""

    micro_batch_size: int = 1
    """Samples of one forward pass on one data-parallel process."""
    global_batch_size: int = 8
    """Samples of one optimizer step over all processes. May be changed at a resume."""
    rampup_batch_size: tuple[int, int, int] | None = None
    """Start, increment and samples of a ramp up to global_batch_size, as Megatron's --rampup-batch-size."""
    train_steps: int | None = None
    """Stop after this step; none trains the whole token budget of data.stages."""
    exit_after_steps: int | None = None
    """Save and leave after this many steps of this process, for queues with a time limit; the run goes on later."""
    seed: int = 1234
    """Seed of the initial weights and of dropout-like randomness; data has its own."""
    fail_on_nan: bool = True
    """Stop with an error at a loss or a gradient that is not finite; otherwise do what healing.nonfinite says."""
    prefetch_steps: int = 2
    """Steps whose batches a thread reads ahead; 0 reads each when it is needed."""

    @property
    def ramp_samples(self) -> int:
        """Samples of the ramp; 0 without one."""
        return self.rampup_batch_size[2] if self.rampup_batch_size is not None else 0

    def global_batch_size_at(self, consumed_samples: int) -> int:
        """Samples of the step that follows `consumed_samples`.

        The ramp has (global_batch_size - start) / increment equal parts; each adds an increment.
        """
        if self.rampup_batch_size is None or consumed_samples >= self.ramp_samples:
            return self.global_batch_size
        start, increment, ramp_samples = self.rampup_batch_size
        parts = (self.global_batch_size - start) // increment
        return start + consumed_samples * parts // ramp_samples * increment

    def global_batch_sizes(self) -> list[int]:
        """Every batch size of the run, ascending."""
        if self.rampup_batch_size is None:
            return [self.global_batch_size]
        start, increment, _ = self.rampup_batch_size
        return list(range(start, self.global_batch_size + 1, increment))

    def problems(self) -> list[str]:
        """Contradictions among these fields."""
        found = []
        for name in ("micro_batch_size", "global_batch_size"):
            if getattr(self, name) < 1:
                found.append(f"training.{name}: {getattr(self, name)} is not positive; use 1 or more")
        for name in ("train_steps", "exit_after_steps"):
            value = getattr(self, name)
            if value is not None and value < 1:
                found.append(f"training.{name}: {value} is not positive; use 1 or more, or null")
        if self.prefetch_steps < 0:
            found.append(f"training.prefetch_steps: {self.prefetch_steps} is negative; use 0 or more")
        return found + self._ramp_problems()

    def _ramp_problems(self) -> list[str]:
        if self.rampup_batch_size is None:
            return []
        start, increment, ramp_samples = self.rampup_batch_size
        where = "training.rampup_batch_size"
        if min(start, increment, ramp_samples) < 1:
            return [f"{where}: start {start}, increment {increment}, samples {ramp_samples}: all have to be positive"]
        if start > self.global_batch_size or (self.global_batch_size - start) % increment:
            return [
                f"{where}: from {start} in steps of {increment} training.global_batch_size {self.global_batch_size} is "
                "not reached; change start or increment"
            ]
        return []

    def problems_with_layout(self, data_parallel_size: int) -> list[str]:
        """Whether a global batch divides into micro-batches over the data-parallel processes."""
        together = self.micro_batch_size * data_parallel_size
        if self.micro_batch_size < 1 or self._ramp_problems():
            return []
        for size in self.global_batch_sizes():
            if size % together:
                field = "global_batch_size" if size == self.global_batch_size else "rampup_batch_size"
                return [
                    f"training.{field}: {size} is not divisible by training.micro_batch_size {self.micro_batch_size} x "
                    f"{data_parallel_size} data-parallel processes; use a multiple of {together}"
                ]
        return []


@dataclass(frozen=True)
class WandbConfig:
    """A run of Weights & Biases; off without a project. A resumed run goes on with its own."""

    project: str | None = None
    """Project that the run is shown in; none sends nothing."""
    entity: str | None = None
    """User or team; none for the account's own choice."""
    name: str | None = None
    """Name of the run; none for a made-up one."""
    mode: Literal["online", "offline"] = "online"
    """Send at once, or keep files in `wandb` beside the metrics for a later `wandb sync`."""

    def problems(self) -> list[str]:
        """Fields that say nothing without a project."""
        given = [name for name in ("entity", "name") if getattr(self, name) is not None]
        if self.project is not None or not given:
            return []
        return [f"logging.wandb.{given[0]}: given without logging.wandb.project; name one"]


@dataclass(frozen=True)
class LoggingConfig:
    """Where the run's numbers go."""

    directory: str | None = None
    """Folder of metrics.jsonl and of TensorBoard's files; none is checkpoint.save."""
    interval_steps: int = 1
    """Steps between two records."""
    tensorboard: bool = True
    """Write TensorBoard files."""
    wandb: WandbConfig = field(default_factory=WandbConfig)
    """Weights & Biases."""
    peak_tflops: float | None = None
    """Peak of one device in TFLOP/s for MFU; none takes the data sheet's dense bf16 figure where the GPU is known."""

    def problems(self) -> list[str]:
        """Values outside their range."""
        found = []
        if self.interval_steps < 1:
            found.append(f"logging.interval_steps: {self.interval_steps} is not positive; use 1 or more")
        if self.peak_tflops is not None and self.peak_tflops <= 0:
            found.append(f"logging.peak_tflops: {self.peak_tflops} is not positive; use the device's figure, or null")
        return found + self.wandb.problems()
