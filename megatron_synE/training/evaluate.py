"""Loss and perplexity on each component's held-out set."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from megatron.core import parallel_state

from megatron_synE.data.batches import Batch
from megatron_synE.data.stream import DataStream
from megatron_synE.training.forward import run_microbatches
from megatron_synE.training.microbatches import to_microbatch
from megatron_synE.training.step import summarise

LARGEST_EXPONENT = 709.0


@dataclass(frozen=True)
class EvaluationResult:
    """Mean token loss of the held-out set of each component that has one."""

    loss_by_component: dict[str, float]
    tokens_by_component: dict[str, int]

    @property
    def perplexity_by_component(self) -> dict[str, float]:
        """exp(mean token loss); a loss above 709 counts as 709, as its exponential is no double."""
        return {name: math.exp(min(loss, LARGEST_EXPONENT)) for name, loss in self.loss_by_component.items()}

    def mean_loss(self) -> float:
        """Mean over all held-out tokens that were read; nan without any. Comparable over a whole run."""
        return _weighted_mean(self.loss_by_component, self.tokens_by_component)

    def mixture_loss(self, shares: Mapping[str, float]) -> float:
        """Mean by the components' shares in the training mixture; nan where none of them was measured.

        Components without held-out samples are left out, and the others' shares stand for all. It moves with the
        mixture, too.
        """
        return _weighted_mean(self.loss_by_component, shares)


def _weighted_mean(values: Mapping[str, float], weights: Mapping[str, float]) -> float:
    total = math.fsum(weights.get(name, 0) for name in values)
    return math.fsum(value * weights.get(name, 0) for name, value in values.items()) / total if total else math.nan


@torch.no_grad()
def evaluate(
    model_chunks: Sequence[torch.nn.Module], stream: DataStream, *, micro_batch_size: int, device: torch.device,
    before_round: Callable[[int, int], None] = lambda number, num_rounds: None,
) -> EvaluationResult:  # fmt: skip
    """Forward passes over all held-out samples, split over the data-parallel processes.

    The samples and their tokens are the same in every layout; what pads the last round counts nothing.

    Args:
        before_round: called with the number of each micro-batch of this process, from 0, and how many there are.

    Raises:
        FloatingPointError: a loss is not finite, so that nothing can be said or decided.
    """
    context_parallel_size = parallel_state.get_context_parallel_world_size()
    for chunk in model_chunks:
        chunk.eval()
    heldout = dict(sorted(stream.heldout().items()))
    rounds = {
        name: rounds_of_rank(
            len(samples),
            micro_batch_size,
            data_parallel_rank=parallel_state.get_data_parallel_rank(),
            data_parallel_size=parallel_state.get_data_parallel_world_size(),
            rounds_multiple=parallel_state.get_pipeline_model_parallel_world_size(),
        )
        for name, samples in heldout.items()
    }
    num_rounds, num_done = sum(map(len, rounds.values())), 0
    losses, tokens = {}, {}
    for name, samples in heldout.items():
        microbatches = [
            to_microbatch(_count_only(samples.batch(indices), num_valid), device, context_parallel_size)
            for indices, num_valid in rounds[name]
        ]
        if microbatches:
            report = run_microbatches(
                model_chunks, microbatches, num_components=len(stream.component_names), forward_only=True,
                before_microbatch=lambda number, first=num_done: before_round(first + number, num_rounds),  # type: ignore[misc]
            )  # fmt: skip
            num_done += len(microbatches)
            # Live adjustment decides on these numbers on every process: they have to be the same to the last bit.
            torch.distributed.broadcast(report, src=0)
            loss, num_tokens, _, _ = summarise(report.tolist())
            if num_tokens and not math.isfinite(loss):
                raise FloatingPointError(f"held-out loss of {name} is {loss}")
            if num_tokens:
                losses[name], tokens[name] = loss, num_tokens
    for chunk in model_chunks:
        chunk.train()
    return EvaluationResult(losses, tokens)


def rounds_of_rank(
    num_samples: int, micro_batch_size: int, *, data_parallel_rank: int, data_parallel_size: int, rounds_multiple: int
) -> list[tuple[list[int], int]]:
    """This process's micro-batches: sample indices, and how many of them, from the first, count.

    Every process gets equally many rounds, a multiple of `rounds_multiple` (the interleaved schedule needs that);
    indices past the last sample repeat it and do not count.
    """
    if num_samples == 0:
        return []
    per_round = micro_batch_size * data_parallel_size
    rounds = -(-num_samples // (per_round * rounds_multiple)) * rounds_multiple
    plan = []
    for number in range(rounds):
        start = number * per_round + data_parallel_rank * micro_batch_size
        indices = [min(index, num_samples - 1) for index in range(start, start + micro_batch_size)]
        plan.append((indices, max(0, min(micro_batch_size, num_samples - start))))
    return plan


def _count_only(batch: Batch, num_valid: int) -> Batch:
    """The batch with the loss mask of the samples from `num_valid` on set to zero."""
    num_samples = len(batch.component_B)
    if num_valid == num_samples:
        return batch
    mask_BS = batch.loss_mask_BS.reshape(num_samples, -1).copy()
    mask_BS[num_valid:] = 0
    return dataclasses.replace(batch, loss_mask_BS=mask_BS.reshape(batch.loss_mask_BS.shape))
