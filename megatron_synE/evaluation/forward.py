"""One pass of megatron-core's schedule over batches whose answers are asked for. B rows, S tokens, M answers."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from megatron.core import parallel_state
from megatron.core.packed_seq_params import PackedSeqParams
from megatron.core.pipeline_parallel import get_forward_backward_func

from megatron_synE.model.targets import Targets


@dataclass(frozen=True)
class ModelBatch:
    """Model inputs of this process; under context parallelism, its part of each row."""

    tokens_BS: torch.Tensor
    position_ids_BS: torch.Tensor
    targets: Targets
    packed_seq_params: PackedSeqParams | None = None


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
