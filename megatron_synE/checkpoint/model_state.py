"""What of a running job goes into a checkpoint, and under which names."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from megatron.core import parallel_state
from megatron.core.dist_checkpointing.dict_utils import extract_matching_values, nested_values
from megatron.core.dist_checkpointing.mapping import ShardedBase, ShardedObject, ShardedTensor
from megatron.core.distributed import DistributedDataParallel

from megatron_synE.checkpoint import optimizer_state
from megatron_synE.checkpoint.index import StoredTensor

RNG_KEY = "rng_state"


def model_state(model_chunks: Sequence[torch.nn.Module]) -> dict[str, Any]:
    """Every parameter of this rank under its global name; Transformer Engine's pickles are left out."""
    state = {}
    for number, chunk in enumerate(model_chunks):
        sharded = bare(chunk).sharded_state_dict(metadata={"non_homogeneous_layers": True})
        _, state[chunk_key(number)] = extract_matching_values(sharded, lambda v: isinstance(v, ShardedObject))
    return state


def bare(chunk: torch.nn.Module) -> Any:
    """The model inside DistributedDataParallel and Float16Module."""
    bare: Any = chunk
    while hasattr(bare, "module"):
        bare = bare.module
    return bare


def chunk_key(number: int) -> str:
    return f"model{number}"


def take_main_params_from_weights(state: dict[str, Any], tensors: Mapping[str, StoredTensor]) -> None:
    """A plain fp32 optimizer has no main parameters apart from the weights, and saved none."""
    for value in nested_values(state):
        if isinstance(value, ShardedBase) and value.key not in tensors:
            value.key = value.key.removeprefix(optimizer_state.MAIN_PARAM_PREFIX)


def finish_param_gather(model_chunks: Sequence[torch.nn.Module]) -> None:
    """With overlapped parameter gathering the weights of other ranks' shards arrive only in the next forward pass."""
    for chunk in model_chunks:
        if isinstance(chunk, DistributedDataParallel) and chunk.ddp_config.overlap_param_gather:
            chunk.start_param_sync(force_sync=True)


def rng_tensor(packed: torch.Tensor) -> ShardedTensor:
    """This rank's row of a table of all ranks' states, filled up with zeros to the longest."""
    rank, world_size = torch.distributed.get_rank(), torch.distributed.get_world_size()
    lengths: list[Any] = [None] * world_size
    torch.distributed.all_gather_object(lengths, packed.numel())
    row = torch.zeros(1, max(lengths), dtype=torch.uint8)
    row[0, : packed.numel()] = packed
    return ShardedTensor.from_rank_offsets(RNG_KEY, row, (0, rank, world_size))


def layout_of_run() -> dict[str, int]:
    return {
        "world_size": torch.distributed.get_world_size(),
        "tensor_model_parallel_size": parallel_state.get_tensor_model_parallel_world_size(),
        "pipeline_model_parallel_size": parallel_state.get_pipeline_model_parallel_world_size(),
        "virtual_pipeline_model_parallel_size": parallel_state.get_virtual_pipeline_model_parallel_world_size() or 1,
        "context_parallel_size": parallel_state.get_context_parallel_world_size(),
        "data_parallel_size": parallel_state.get_data_parallel_world_size(),
    }
