"""One optimizer step."""

from __future__ import annotations

import dataclasses
import gc
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from megatron.core.distributed import DistributedDataParallel
from megatron.core.optimizer import ChainedOptimizer, clip_grads
from megatron.core.optimizer.optimizer import MegatronOptimizer

from megatron_synE.kernels import ParameterwiseOptimizer
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
    """False when the update was left out: loss or gradient were not finite, or it was refused."""

    @property
    def finite(self) -> bool:
        """Whether loss and gradient norm are numbers."""
        return math.isfinite(self.loss) and math.isfinite(self.grad_norm)


def freeze_startup_objects() -> None:
    """Leave all objects that exist now out of Python's garbage collections, for the life of the process.

    Called once, before the first step. A full collection otherwise walks every object that the imports and the setup
    made, again and again, in the middle of a step: 3 to 4 % of a short step.
    """
    gc.collect()
    gc.freeze()


def train_step(
    model_chunks: Sequence[DistributedDataParallel],
    optimizer: ChainedOptimizer,
    microbatches: Sequence[MicroBatch],
    *,
    learning_rate: float,
    num_components: int,
    accept: Callable[[StepResult], bool] = lambda result: True,
    before_microbatch: Callable[[int], None] | None = None,
) -> StepResult:
    """Gradients of all micro-batches, reduced and divided once by the number of valid tokens; clip; update.

    Args:
        accept: whether a finite step may update the weights; the same answer on all processes.
        before_microbatch: called with each micro-batch's number; what it raises gives up the step, weights unchanged.
    """
    for chunk in model_chunks:
        chunk.zero_grad_buffer()
    optimizer.zero_grad()
    report = run_microbatches(
        model_chunks, microbatches, num_components=num_components, forward_only=False,
        before_microbatch=before_microbatch,
    )  # fmt: skip
    set_learning_rate(optimizer, learning_rate)
    rows, grad_norm = _read(report, optimizer)
    loss, num_tokens, component_losses, component_tokens = summarise(rows)
    grad_norm = grad_norm if math.isfinite(loss) else math.nan
    result = StepResult(loss, num_tokens, component_losses, component_tokens, grad_norm, learning_rate, updated=False)
    if not result.finite or not accept(result):
        return result
    return dataclasses.replace(result, updated=update(optimizer, grad_norm))


def _read(report: torch.Tensor, optimizer: ChainedOptimizer) -> tuple[list[list[float]], float]:
    """Rows of the report, and the global L2 norm of the gradients; nan where megatron-core's scaler found an infinity.

    The one place where the host waits for the device, with everything that it wants to know in one tensor. It stands
    before the update, for that needs the answer: a step that is not finite, or that healing refuses, must leave the
    weights, the moments and the count of updates as they were. The device goes on within a fraction of a millisecond;
    logging and the launch of the next forward pass then run beside the update.
    """
    found_infinity = optimizer.prepare_grads()
    numbers = torch.cat([report.flatten(), squared_gradient_norm(optimizer).double()]).tolist()
    rows = [numbers[begin : begin + 2] for begin in range(0, len(numbers) - 1, 2)]
    return rows, math.nan if found_infinity else numbers[-1] ** 0.5


@torch.no_grad()
def squared_gradient_norm(optimizer: ChainedOptimizer) -> torch.Tensor:
    """fp32 `[1]` on the device; what megatron-core's `get_grad_norm` would bring to the host at once."""
    gradients = [grad for part in optimizer.chained_optimizers for grad in part.get_main_grads_for_grad_norm()]
    group = optimizer.get_grad_stats_parallel_group()
    if gradients:
        overflow = torch.zeros(1, dtype=torch.int, device=gradients[0].device)
        norm, _ = clip_grads.multi_tensor_applier(clip_grads.l2_norm_impl, overflow, [gradients], False)
    else:
        norm = torch.zeros(1, dtype=torch.float, device=torch.cuda.current_device())
    squared = norm**2
    torch.distributed.all_reduce(squared, group=group)
    return squared


def update(optimizer: ChainedOptimizer, grad_norm: float) -> bool:
    """Clip and apply the reduced gradients of this finite norm; whether the weights were updated.

    megatron-core's own `step` looks at the norm only to scale by it: without a loss scaler, as in bf16, one NaN in a
    gradient would reach every weight. Here a step that is not finite never gets this far.
    """
    for part in optimizer.chained_optimizers:
        if part.config.clip_grad > 0 and part.get_parameters():
            _clip(part, grad_norm)
    return bool(optimizer.step_with_ready_grads())


def _clip(part: MegatronOptimizer, grad_norm: float) -> None:
    if isinstance(part.optimizer, ParameterwiseOptimizer):
        # It scales the gradient where it reads it; the formula is torch's and megatron-core's.
        part.optimizer.grad_scale = min(1.0, part.config.clip_grad / (grad_norm + 1e-6))
    else:
        clip_grads.clip_grad_by_total_norm_fp32(
            part.get_parameters(),
            max_norm=part.config.clip_grad,
            total_norm=grad_norm,
            use_decoupled_grad=part.config.use_precision_aware_optimizer_no_fp8_or_ds_fp8,
        )


def summarise(rows: Sequence[Sequence[float]]) -> tuple[float, int, tuple[float, ...], tuple[int, ...]]:
    """Loss, valid tokens, and both by component, of a report of `num_components` rows (sum of losses, tokens)."""
    sums, counts = zip(*rows, strict=True)
    total = sum(counts)
    by_component = tuple(s / n if n else math.nan for s, n in zip(sums, counts, strict=True))
    return (sum(sums) / total if total else math.nan), int(total), by_component, tuple(int(n) for n in counts)
