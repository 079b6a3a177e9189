"""One pass of megatron-core's schedule over batches whose answers are asked for. B rows, S tokens, M answers."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from megatron.core import parallel_state
from megatron.core.packed_seq_params import PackedSeqParams
from megatron.core.pipeline_parallel import get_forward_backward_func

from megatron_synE.checkpoint.model_state import bare, finish_param_gather
from megatron_synE.evaluation.llama.batching import Target
from megatron_synE.model.targets import Targets

Found = list[tuple[Target, float, float]]
"""What was asked, ln p of the token, and the most probable token there."""


@dataclass(frozen=True)
class ModelBatch:
    """Model inputs of this process; under context parallelism, its part of each row."""

    tokens_BS: torch.Tensor
    position_ids_BS: torch.Tensor
    targets: Targets
    packed_seq_params: PackedSeqParams | None = None


def run_asked(model_chunks: Sequence[torch.nn.Module], asked: Sequence[tuple[ModelBatch, list[Target]]]) -> Found:
    """`run_batches`, and what this process learns by it; each batch comes with what its M answers are about."""
    outputs = run_batches(model_chunks, [batch for batch, _ in asked]) if asked else []
    return [
        (target, *output) for (_, targets), values_M2 in zip(asked, outputs, strict=False)
        for target, output in zip(targets, values_M2.tolist(), strict=True)
    ]  # fmt: skip


def padded_length(model_chunks: Sequence[torch.nn.Module], num_tokens: int) -> int:
    """How many tokens a row has that takes so many in this layout."""
    multiple = bare(model_chunks[0]).token_multiple()
    return -(-num_tokens // multiple) * multiple


def from_all_processes(found: Found, group: torch.distributed.ProcessGroup | None) -> Found:
    """The findings of all processes, in the order of their ranks. Of a tensor-parallel group, all know the same."""
    own = found if parallel_state.get_tensor_model_parallel_rank() == 0 else []
    if torch.distributed.get_world_size() == 1:
        return own
    everyone: list[Any] = [None] * torch.distributed.get_world_size()
    torch.distributed.all_gather_object(everyone, [(*target, *output) for target, *output in own], group=group)
    return [(Target(*row[:3]), *row[3:]) for rows in everyone for row in rows]


@contextmanager
def evaluation_mode(model_chunks: Sequence[torch.nn.Module]) -> Iterator[None]:
    """Inside, the model is whole and in evaluation mode; afterwards it is in the mode that it was in."""
    finish_param_gather(model_chunks)
    were_training = [chunk.training for chunk in model_chunks]
    for chunk in model_chunks:
        chunk.eval()
    try:
        yield
    finally:
        for chunk, was_training in zip(model_chunks, were_training, strict=True):
            chunk.train(was_training)


def run_batches(model_chunks: Sequence[torch.nn.Module], batches: Sequence[ModelBatch]) -> list[torch.Tensor]:
    """Forward of all batches, which have one shape, through the pipeline in their order.

    Called by all processes that share a replica of the model. With virtual stages, the number of batches is a
    multiple of the pipeline's size.

    Returns:
        On the last pipeline stage `log_probabilities` of each batch, `[M, 2]`; nothing on the others.
    """
    num_rows, num_tokens = batches[0].tokens_BS.shape
    assert all(batch.tokens_BS.shape == (num_rows, num_tokens) for batch in batches)
    return get_forward_backward_func()(
        forward_step_func=_forward_step,
        data_iterator=[iter(batches) for _ in model_chunks],
        model=list(model_chunks),
        num_microbatches=len(batches),
        seq_length=num_tokens * parallel_state.get_context_parallel_world_size(),
        micro_batch_size=num_rows,
        forward_only=True,
        collect_non_loss_data=True,
    )


def _forward_step(data_iterator: Iterator[ModelBatch], model: torch.nn.Module) -> tuple[torch.Tensor, Any]:
    batch = next(data_iterator)
    output = model(
        input_ids=batch.tokens_BS,
        position_ids=batch.position_ids_BS,
        attention_mask=None,
        labels=batch.targets,
        packed_seq_params=batch.packed_seq_params,
    )
    return output, _unchanged


def _unchanged(output: torch.Tensor, non_loss_data: bool) -> torch.Tensor:
    return output
