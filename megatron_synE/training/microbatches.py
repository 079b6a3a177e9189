"""Samples of one step → this process's micro-batches as tensors. B samples, S tokens, C context-parallel share of S."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from megatron.core.packed_seq_params import PackedSeqParams
from megatron.core.utils import get_batch_on_this_cp_rank

from megatron_synE.data.batches import Batch


@dataclass(frozen=True)
class MicroBatch:
    """Model inputs on the device. With isolated documents the B samples stand packed in one row of B*S tokens."""

    tokens_BS: torch.Tensor
    labels_BS: torch.Tensor
    loss_mask_BS: torch.Tensor
    position_ids_BS: torch.Tensor
    component_BS: torch.Tensor
    packed_seq_params: PackedSeqParams | None


def sample_numbers_of_rank(
    first_sample: int, global_batch_size: int, micro_batch_size: int, data_parallel_rank: int, data_parallel_size: int
) -> list[range]:
    """The global sample numbers of each micro-batch of this data-parallel process.

    Micro-batch m of rank r holds the samples `first + (m * size + r) * micro_batch_size` and the following, so that
    the processes together read the global batch exactly once, in any layout.
    """
    together = micro_batch_size * data_parallel_size
    assert global_batch_size % together == 0
    starts = range(first_sample + data_parallel_rank * micro_batch_size, first_sample + global_batch_size, together)
    return [range(start, start + micro_batch_size) for start in starts]


def to_microbatch(batch: Batch, device: torch.device, context_parallel_size: int = 1) -> MicroBatch:
    """Move a batch to the device, keeping only this process's part of each sequence under context parallelism."""
    tokens_per_sample = batch.tokens_BS.size // len(batch.component_B)
    component_BS = np.repeat(batch.component_B, tokens_per_sample).reshape(batch.tokens_BS.shape)
    tensors = {
        "tokens": torch.from_numpy(batch.tokens_BS),
        "labels": torch.from_numpy(batch.labels_BS),
        "loss_mask": torch.from_numpy(batch.loss_mask_BS),
        "position_ids": torch.from_numpy(batch.position_ids_BS),
        "component": torch.from_numpy(component_BS),
    }
    if context_parallel_size > 1:
        tensors = get_batch_on_this_cp_rank(tensors)
    tensors = {name: tensor.to(device, non_blocking=True) for name, tensor in tensors.items()}
    return MicroBatch(
        tokens_BS=tensors["tokens"],
        labels_BS=tensors["labels"],
        loss_mask_BS=tensors["loss_mask"],
        position_ids_BS=tensors["position_ids"],
        component_BS=tensors["component"],
        packed_seq_params=_packed(batch.cu_seqlens, device),
    )


def _packed(cu_seqlens: np.ndarray | None, device: torch.device) -> PackedSeqParams | None:
    if cu_seqlens is None:
        return None
    boundaries = torch.from_numpy(np.ascontiguousarray(cu_seqlens, dtype=np.int32)).to(device)
    longest = int(np.diff(cu_seqlens).max())
    return PackedSeqParams(
        qkv_format="thd", cu_seqlens_q=boundaries, cu_seqlens_kv=boundaries, max_seqlen_q=longest, max_seqlen_kv=longest
    )


def iterators(microbatches: Sequence[MicroBatch], num_chunks: int) -> list[Iterator[MicroBatch]]:
    """One iterator for each model chunk of this process: every chunk sees all micro-batches in order."""
    return [iter(microbatches) for _ in range(num_chunks)]
