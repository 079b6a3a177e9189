"""One pass of megatron-core's schedule over a step's micro-batches. B batch, S sequence."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import torch
from megatron.core import parallel_state
from megatron.core.pipeline_parallel import get_forward_backward_func

from megatron_synE.training.microbatches import MicroBatch, iterators


def run_microbatches(
    model_chunks: Sequence[torch.nn.Module], microbatches: Sequence[MicroBatch], *, num_components: int,
    forward_only: bool, before_microbatch: Callable[[int], None] | None = None,
) -> torch.Tensor:  # fmt: skip
    """Forward (and backward) of all micro-batches through the pipeline.

    Args:
        before_microbatch: called with the number of each micro-batch, from 0, before its forward pass; with several
            model chunks once for each chunk.

    Returns:
        `[num_components, 2]` fp64 on every process: the sum of token losses and the number of valid tokens of each
        component, over the whole global batch.
    """
    first = microbatches[0].tokens_BS
    outputs = get_forward_backward_func()(
        forward_step_func=partial(_forward_step, num_components=num_components, before_microbatch=before_microbatch),
        data_iterator=[enumerate(iterator) for iterator in iterators(microbatches, len(model_chunks))],
        model=list(model_chunks),
        num_microbatches=len(microbatches),
        seq_length=first.shape[1] * parallel_state.get_context_parallel_world_size(),
        micro_batch_size=first.shape[0],
        forward_only=forward_only,
    )
    return _over_all_processes(outputs, num_components, first.device)


def _forward_step(
    data_iterator: Iterator[tuple[int, MicroBatch]], model: torch.nn.Module, num_components: int,
    before_microbatch: Callable[[int], None] | None,
) -> tuple[torch.Tensor, Any]:  # fmt: skip
    number, batch = next(data_iterator)
    if before_microbatch is not None:
        before_microbatch(number)
    output = model(
        input_ids=batch.tokens_BS,
        position_ids=batch.position_ids_BS,
        attention_mask=None,
        labels=batch.labels_BS,
        loss_mask=batch.loss_mask_BS,
        packed_seq_params=batch.packed_seq_params,
    )
    return output, partial(_loss, batch=batch, num_components=num_components)


def _loss(
    token_losses_BS: torch.Tensor, *, batch: MicroBatch, num_components: int
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Sum of the valid tokens' losses, their number, and both for each component."""
    mask_BS = batch.loss_mask_BS
    losses_BS = token_losses_BS.float() * mask_BS
    report = torch.zeros(num_components, 2, dtype=torch.float64, device=losses_BS.device)
    component_T = batch.component_BS.flatten().long()
    report[:, 0].index_add_(0, component_T, losses_BS.detach().flatten().double())
    report[:, 1].index_add_(0, component_T, mask_BS.flatten().double())
    return losses_BS.sum(), mask_BS.sum().to(torch.int), report


def _over_all_processes(outputs: list[torch.Tensor], num_components: int, device: torch.device) -> torch.Tensor:
    total = torch.zeros(num_components, 2, dtype=torch.float64, device=device)
    if parallel_state.is_pipeline_last_stage(ignore_virtual=True):
        for report in outputs:
            total += report
        torch.distributed.all_reduce(total, group=parallel_state.get_data_parallel_group(with_context_parallel=True))
    if parallel_state.get_pipeline_model_parallel_world_size() > 1:
        last = parallel_state.get_pipeline_model_parallel_last_rank()
        torch.distributed.broadcast(total, src=last, group=parallel_state.get_pipeline_model_parallel_group())
    return total
