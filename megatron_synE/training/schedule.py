"""Learning rate as a function of the tokens consumed: nothing to save, nothing to restore."""

from __future__ import annotations

import math
from dataclasses import dataclass

from megatron_synE.config.optimizer import ScheduleConfig


@dataclass(frozen=True)
class LearningRateSchedule:
    """Warm-up, then constant, cosine or WSD (warm-up, stable, decay; arXiv 2404.06395).

    All lengths in tokens. The position is the number of tokens consumed before the step, as in Megatron: the first
    step runs at `init_lr`.
    """

    style: str
    max_lr: float
    init_lr: float
    min_lr: float
    warmup_tokens: int
    decay_tokens: int
    total_tokens: int
    decay_style: str

    def __call__(self, consumed_tokens: int) -> float:
        """Learning rate of the step that starts after `consumed_tokens`."""
        if consumed_tokens < self.warmup_tokens:
            return self.init_lr + (self.max_lr - self.init_lr) * consumed_tokens / self.warmup_tokens
        if self.style == "constant":
            return self.max_lr
        if self.style == "cosine":
            length = max(self.total_tokens - self.warmup_tokens, 1)
            return self._between(min((consumed_tokens - self.warmup_tokens) / length, 1.0), "cosine")
        start = self.total_tokens - self.decay_tokens
        if self.decay_tokens == 0 or consumed_tokens < start:
            return self.max_lr
        return self._between(min((consumed_tokens - start) / self.decay_tokens, 1.0), self.decay_style)

    def _between(self, progress: float, shape: str) -> float:
        """From max_lr at progress 0 to min_lr at 1."""
        if shape == "exponential":
            return self.max_lr * (self.min_lr / self.max_lr) ** progress
        remaining = {
            "linear": 1 - progress,
            "cosine": (1 + math.cos(math.pi * progress)) / 2,
            "minus_sqrt": 1 - math.sqrt(progress),
        }[shape]
        return self.min_lr + (self.max_lr - self.min_lr) * remaining


def make_schedule(
    config: ScheduleConfig, max_lr: float, *, total_tokens: int, tokens_per_step: int
) -> LearningRateSchedule:
    """Resolve lengths given in steps.

    Raises:
        ValueError: warm-up and decay together are longer than the run.
    """

    def length(tokens: int | None, steps: int | None) -> int:
        return tokens if tokens is not None else (steps or 0) * tokens_per_step

    warmup = length(config.warmup_tokens, config.warmup_steps)
    decay = length(config.decay_tokens, config.decay_steps)
    if warmup + decay > total_tokens:
        raise ValueError(
            f"schedule.warmup_tokens, schedule.decay_tokens: {warmup} + {decay} tokens are more than the run's "
            f"{total_tokens}; shorten them, or train longer (data.stages)"
        )
    if config.min_lr > max_lr:
        raise ValueError(f"schedule.min_lr: {config.min_lr} is above optimizer.lr {max_lr}; lower it")
    return LearningRateSchedule(
        style=config.style, max_lr=max_lr, init_lr=config.init_lr, min_lr=config.min_lr, warmup_tokens=warmup,
        decay_tokens=decay, total_tokens=total_tokens, decay_style=config.decay_style,
    )  # fmt: skip
