"""AdamW and the learning-rate schedule."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

LARGEST_BF16_BETA = 0.99
"""bf16 has 8 significant bits: rounding takes a change of less than 2^-9 to 2^-8 of the value back."""


@dataclass(frozen=True)
class OptimizerConfig:
    """AdamW as Llama-3-SynE uses it (β 0.9 and 0.95, clipping 1.0)."""

    lr: float = 1e-5
    """Highest learning rate."""
    weight_decay: float = 0.1
    """Decoupled decay of matrices; norms do not decay."""
    adam_beta1: float = 0.9
    """Decay of the first moment."""
    adam_beta2: float = 0.95
    """Decay of the second moment."""
    adam_eps: float = 1e-8
    """Added to the root of the second moment."""
    clip_grad: float = 1.0
    """Largest global gradient norm; 0 turns clipping off."""
    use_precision_aware_optimizer: bool = False
    """Let the optimizer keep its state in less memory (Megatron's name); needs the distributed optimizer and bf16."""
    exp_avg_dtype: Literal["fp32", "bf16"] = "fp32"
    """Format in which the precision-aware optimizer stores the first moment."""
    exp_avg_sq_dtype: Literal["fp32", "bf16"] = "fp32"
    """Format in which the precision-aware optimizer stores the second moment."""
    store_param_remainders: bool = True
    """Precision-aware optimizer: 16 bits beside each bf16 weight, which are exact together, for an fp32 main value."""

    def problems(self) -> list[str]:
        """Values outside their range."""
        found = []
        if self.lr <= 0:
            found.append(f"optimizer.lr: {self.lr} is not positive; use for instance 1e-5")
        for name in ("adam_beta1", "adam_beta2"):
            if not 0 <= getattr(self, name) < 1:
                found.append(f"optimizer.{name}: {getattr(self, name)} is not in [0, 1)")
        for name in ("weight_decay", "clip_grad"):
            if getattr(self, name) < 0:
                found.append(f"optimizer.{name}: {getattr(self, name)} is negative; use 0 to turn it off")
        if self.adam_eps <= 0:
            found.append(f"optimizer.adam_eps: {self.adam_eps} is not positive; use 1e-8")
        return found + self._moment_problems()

    def _moment_problems(self) -> list[str]:
        found = []
        for moment, beta_name in (("exp_avg", "adam_beta1"), ("exp_avg_sq", "adam_beta2")):
            beta = getattr(self, beta_name)
            if getattr(self, f"{moment}_dtype") == "fp32":
                continue
            if not self.use_precision_aware_optimizer:
                found.append(
                    f"optimizer.{moment}_dtype: only the precision-aware optimizer stores bf16; set "
                    "optimizer.use_precision_aware_optimizer, or use fp32"
                )
            if LARGEST_BF16_BETA < beta < 1:
                found.append(
                    f"optimizer.{moment}_dtype: bf16 rounds off changes below 1/256, and optimizer.{beta_name} {beta} "
                    f"decays by {1 - beta:.2g} a step: the moment would stop moving; use fp32, or a beta of "
                    f"{LARGEST_BF16_BETA} or less"
                )
        return found


@dataclass(frozen=True)
class ScheduleConfig:
    """Learning rate over the run. Lengths are in tokens or in steps; the run's length is the data's budget."""

    style: Literal["wsd", "cosine", "constant"] = "wsd"
    """Warm-up, stable, decay; or warm-up and cosine to the end; or warm-up and constant."""
    init_lr: float = 0.0
    """Learning rate at the first step of the warm-up."""
    min_lr: float = 0.0
    """Learning rate at the end of a decay."""
    warmup_tokens: int | None = None
    """Length of the linear warm-up in tokens."""
    warmup_steps: int | None = None
    """The same in steps."""
    decay_tokens: int | None = None
    """Length of WSD's final decay in tokens; the stable phase fills the time before it."""
    decay_steps: int | None = None
    """The same in steps."""
    decay_style: Literal["linear", "cosine", "exponential", "minus_sqrt"] = "minus_sqrt"
    """Shape of WSD's decay; minus_sqrt is 1 - sqrt(t) (arXiv 2405.18392)."""

    def problems(self) -> list[str]:
        """Contradictions among these fields."""
        found = []
        for phase in ("warmup", "decay"):
            tokens, steps = getattr(self, f"{phase}_tokens"), getattr(self, f"{phase}_steps")
            if tokens is not None and steps is not None:
                found.append(f"schedule.{phase}_tokens: schedule.{phase}_steps is given too; keep one of them")
            if min(tokens or 0, steps or 0) < 0:
                found.append(f"schedule.{phase}: a negative length; use 0 or more")
        if self.style != "wsd" and (self.decay_tokens or self.decay_steps):
            found.append(f"schedule.decay: only style wsd has a decay phase, style is {self.style}; drop it or use wsd")
        decays = self.style == "wsd" and bool(self.decay_tokens or self.decay_steps)
        if decays and self.decay_style == "exponential" and self.min_lr <= 0:
            found.append("schedule.min_lr: an exponential decay needs a positive end; set it")
        if self.init_lr < 0 or self.min_lr < 0:
            found.append("schedule.init_lr, schedule.min_lr: a negative learning rate; use 0 or more")
        return found
