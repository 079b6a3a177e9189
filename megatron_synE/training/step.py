"""One optimizer step."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from megatron.core.distributed import DistributedDataParallel
from megatron.core.optimizer import MegatronOptimizer

from megatron_synE.training.forward import run_microbatches
from megatron_synE.training.microbatches import MicroBatch
from megatron_synE.training.optimizer import set_learning_rate


@dataclass(frozen=True)
class StepResult:
    """What one step did; the same on every process."""

    loss: float
    """Sum of token losses ÷ valid tokens of the whole global batch."""
    num_tokens: int
    """Valid tokens of the global batch."""
    component_losses: tuple[float, ...]
    """Mean token loss of each component; nan where the batch held none of its tokens."""
    component_tokens: tuple[int, ...]
    """Valid tokens of each component."""
    grad_norm: float
    """Global L2 norm of the gradient before clipping."""
    learning_rate: float
    """Learning rate of the update."""
    updated: bool
    """False when the gradient was not finite and the update was left out."""


def train_step(
    model_chunks: Sequence[DistributedDataParallel],
    optimizer: MegatronOptimizer,
    microbatches: Sequence[MicroBatch],
    *,
    learning_rate: float,
    num_components: int,
) -> StepResult:
    """Gradients of all micro-batches, reduced and divided once by the number of valid tokens; clip; update."""
    for chunk in model_chunks:
        chunk.zero_grad_buffer()
    optimizer.zero_grad()
    report = run_microbatches(model_chunks, microbatches, num_components=num_components, forward_only=False)
    loss, num_tokens, component_losses, component_tokens = summarise(report)
    set_learning_rate(optimizer, learning_rate)
    grad_norm, updated = 0.0, False
    if math.isfinite(loss):
        updated, norm, _ = optimizer.step()
        grad_norm = float(norm) if norm is not None else math.nan
    return StepResult(loss, num_tokens, component_losses, component_tokens, grad_norm, learning_rate, bool(updated))


def summarise(report: torch.Tensor) -> tuple[float, int, tuple[float, ...], tuple[int, ...]]:
    """Loss, valid tokens, and both by component, of a `[num_components, 2]` report."""
    sums, counts = report[:, 0].tolist(), report[:, 1].tolist()
    total = sum(counts)
    by_component = tuple(s / n if n else math.nan for s, n in zip(sums, counts, strict=True))
    return (sum(sums) / total if total else math.nan), int(total), by_component, tuple(int(n) for n in counts)
