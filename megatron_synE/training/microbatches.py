"""Samples of one step → this process's micro-batches as tensors. B samples, S tokens, C context-parallel share of S."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from megatron.core.packed_seq_params import PackedSeqParams
from megatron.core.utils import get_batch_on_this_cp_rank

from megatron_synE.data.batches import Batch
from megatron_synE.runtime import ready_for_copy


@dataclass(frozen=True)
class MicroBatch:
    """Model inputs. With isolated documents the B samples stand packed in one row of B*S tokens."""

    tokens_BS: torch.Tensor
    labels_BS: torch.Tensor
    loss_mask_BS: torch.Tensor
    position_ids_BS: torch.Tensor
    component_BS: torch.Tensor
    packed_seq_params: PackedSeqParams | None

    def to(self, device: torch.device) -> MicroBatch:
        """The same on the device."""
        packed = self.packed_seq_params
        if packed is not None:
            boundaries = packed.cu_seqlens_q.to(device, non_blocking=True)
            packed = dataclasses.replace(packed, cu_seqlens_q=boundaries, cu_seqlens_kv=boundaries)
        return MicroBatch(
            tokens_BS=self.tokens_BS.to(device, non_blocking=True),
            labels_BS=self.labels_BS.to(device, non_blocking=True),
            loss_mask_BS=self.loss_mask_BS.to(device, non_blocking=True),
            position_ids_BS=self.position_ids_BS.to(device, non_blocking=True),
            component_BS=self.component_BS.to(device, non_blocking=True),
            packed_seq_params=packed,
        )


def sample_numbers_of_rank(
    samples: np.ndarray, micro_batch_size: int, data_parallel_rank: int, data_parallel_size: int
) -> np.ndarray:
    """The global sample numbers int64[num_microbatches, micro_batch_size] of this data-parallel process.

    Micro-batch m of rank r is number m * size + r in the global batch int64[·], so that the processes together read it
    exactly once, in any layout.
    """
    return samples.reshape(-1, data_parallel_size, micro_batch_size)[:, data_parallel_rank]


def to_microbatch(batch: Batch, device: torch.device, context_parallel_size: int = 1) -> MicroBatch:
    """`host_microbatch` on the device."""
    return host_microbatch(batch, device, context_parallel_size).to(device)


def host_microbatch(batch: Batch, device: torch.device, context_parallel_size: int = 1) -> MicroBatch:
    """Tensors of a batch on the host, ready to be copied to the device.

    Under context parallelism, only this process's part of each sequence.
    """
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
    tensors = {name: ready_for_copy(tensor, device) for name, tensor in tensors.items()}
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
    boundaries = ready_for_copy(torch.from_numpy(np.ascontiguousarray(cu_seqlens, dtype=np.int32)), device)
    longest = int(np.diff(cu_seqlens).max())
    return PackedSeqParams(
        qkv_format="thd", cu_seqlens_q=boundaries, cu_seqlens_kv=boundaries, max_seqlen_q=longest, max_seqlen_kv=longest
    )


def iterators(microbatches: Sequence[MicroBatch], num_chunks: int) -> list[Iterator[MicroBatch]]:
    """One iterator for each model chunk of this process: every chunk sees all micro-batches in order."""
    return [iter(microbatches) for _ in range(num_chunks)]
