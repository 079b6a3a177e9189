"""The distributed optimizer's shards, saved and loaded where they lie.

Each data-parallel process holds, of every parameter, main values and Adam's moments for one range of the flattened
parameter. megatron-core's reshardable format gathers these ranges on one process before a save, and reads whole
parameters everywhere at a load. Here a range becomes what it is in the parameter's own shape, at most three rectangles
(the end of a row, whole rows, the start of a row): all processes write and read their own, nothing is sent, and nothing
is copied.

The precision-aware optimizer (ours, or Transformer Engine's) stores some of it in 16 bits. That is copied to fp32 on
the host, which is exact, and back: a checkpoint does not show which optimizer wrote it.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from megatron.core.dist_checkpointing.dict_utils import nested_values
from megatron.core.dist_checkpointing.mapping import LocalNonpersistentObject, ShardedTensor, ShardedTensorFactory
from megatron.core.optimizer.distrib_optimizer import DistributedOptimizer

MAIN_PARAM_PREFIX = "optimizer.state.fp32_param."
_STATE_KEYS = {"param": "fp32_param", "exp_avg": "exp_avg", "exp_avg_sq": "exp_avg_sq"}
_COPIES = "fp32_copies"


class Rectangle(NamedTuple):
    """Part of a matrix: `[row, row + num_rows) × [column, column + num_columns)`."""

    row: int
    column: int
    num_rows: int
    num_columns: int


def rectangles(start: int, stop: int, width: int) -> Iterator[Rectangle]:
    """`[start, stop)` of a flattened matrix of `width` columns, in order, as at most three rectangles."""
    while start < stop:
        row, column = divmod(start, width)
        if column or stop - start < width:
            num_columns = min(width - column, stop - start)
            yield Rectangle(row, column, 1, num_columns)
            start += num_columns
        else:
            num_rows = (stop - start) // width
            yield Rectangle(row, 0, num_rows, width)
            start += num_rows * width


def distributed_state(optimizer: DistributedOptimizer, model_state: dict[str, Any]) -> dict[str, Any]:
    """This process's shards as parts of whole tensors `optimizer.state.{kind}.{parameter}`: views where they are fp32.

    Copies of what is not are kept beside them, for `take_over_state` after a load.
    """
    blocks_of = {
        value.data: value.build() if isinstance(value, ShardedTensorFactory) else [value]
        for value in nested_values(model_state)
        if isinstance(value, ShardedTensor | ShardedTensorFactory)
    }
    state: dict[str, Any] = {}
    copies = []
    for param, start, stop in _owned_ranges(optimizer):
        if optimizer.config.use_precision_aware_optimizer:
            flat = _in_fp32(*_stored(optimizer, param))
            copies.append((param, flat))
        else:
            flat = optimizer._get_main_param_and_optimizer_states(param)
        block_start = 0
        for block in blocks_of[param]:
            numel = block.data.numel()
            first, last = max(start, block_start), min(stop, block_start + numel)
            for name, stored_name in _STATE_KEYS.items():
                owned = flat[name].detach()[max(first - start, 0) : max(last - start, 0)]
                for piece in _pieces(block, owned, first - block_start, f"optimizer.state.{stored_name}.{block.key}"):
                    state[f"{piece.key}@{piece.global_offset}"] = piece
            block_start += numel
    if copies:
        state[_COPIES] = LocalNonpersistentObject(copies)
    return state


@torch.no_grad()
def take_over_state(optimizer: DistributedOptimizer, loaded: dict[str, Any]) -> None:
    """After a load: bring what was read into fp32 copies to where the precision-aware optimizer stores it.

    Weights become the rounded main values, on all processes those of the owner. An optimizer that rounds halves
    otherwise may have saved other ones.
    """
    if not optimizer.config.use_precision_aware_optimizer:
        return
    for param, flat in loaded.get(_COPIES, []):
        shard, stored = _stored(optimizer, param)
        if stored["param"].dtype == torch.int16:
            for target, half in zip((shard, stored.pop("param")), _split(flat["param"]), strict=True):
                target.copy_(half)
        else:
            shard.copy_(flat["param"])
        for name, target in stored.items():
            target.copy_(flat[name])
    for chunk in optimizer.model_chunks:
        chunk.start_param_sync(force_sync=True)


def _stored(optimizer: DistributedOptimizer, param: torch.nn.Parameter) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """The range of a model parameter that this process owns, and its state as the precision-aware optimizer has it."""
    group, position = optimizer.model_param_group_index_map[param]
    shard = optimizer.optimizer.param_groups[group]["params"][position]
    state = optimizer.optimizer.state[shard]
    return shard, {"param": state["master_param"], "exp_avg": state["exp_avg"], "exp_avg_sq": state["exp_avg_sq"]}


def _in_fp32(shard: torch.Tensor, stored: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    main = stored["param"]
    if main.dtype == torch.int16:
        stored = {**stored, "param": _join(shard, main)}
    return {name: t if t.dtype == torch.float32 else t.float().cpu() for name, t in stored.items()}


def _join(high: torch.Tensor, remainder: torch.Tensor) -> torch.Tensor:
    """fp32 values of which the bf16 and int16 tensors are halves; as `kernels.reference.join_fp32`, on the host."""
    return ((high.detach().cpu().view(torch.int16).int() << 16) + remainder.cpu()).view(torch.float32)


def _split(values: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The halves: bf16 rounded half up, and the int16 difference of the bits; a NaN is the quiet one."""
    bits = torch.where(values.isnan(), 0x7FC00000, values.view(torch.int32))
    remainder = bits.to(torch.int16)
    return ((bits - remainder) >> 16).to(torch.int16).view(torch.bfloat16), remainder


def _owned_ranges(optimizer: DistributedOptimizer) -> Iterator[tuple[torch.nn.Parameter, int, int]]:
    for buffer in optimizer.gbuf_ranges:
        for buckets in buffer.values():
            for bucket in buckets:
                for param, ranges in bucket["param_map"].items():
                    yield param, ranges["param"].start, ranges["param"].end


def _pieces(block: ShardedTensor, owned: torch.Tensor, start: int, key: str) -> Iterator[ShardedTensor]:
    """`owned`, elements `[start, …)` of the flattened block, as parts of the block's whole tensor."""
    assert len(block.local_shape) <= 2 and block.prepend_axis_num == 0, block
    width = block.local_shape[-1]
    position = 0
    for rectangle in rectangles(start, start + owned.numel(), width):
        numel = rectangle.num_rows * rectangle.num_columns
        shape = (rectangle.num_rows, rectangle.num_columns)[-len(block.local_shape) :]
        corner = (rectangle.row, rectangle.column)[-len(block.local_shape) :]
        yield ShardedTensor(
            key=key,
            data=owned[position : position + numel].view(shape),
            dtype=owned.dtype,
            local_shape=shape,
            global_shape=block.global_shape,
            global_offset=tuple(a + b for a, b in zip(block.global_offset, corner, strict=True)),
            axis_fragmentations=None,
            replica_id=(*block.replica_id[:2], 0),  # each data-parallel process owns its range alone
            allow_shape_mismatch=block.allow_shape_mismatch,
        )
        position += numel
