"""What megatron-core's optimizers need around a save and a load.

On disk the optimizer's tensors are `optimizer.state.{fp32_param, exp_avg, exp_avg_sq}.{parameter}` in the shape of the
whole parameter, whichever optimizer wrote them (plain, mixed-precision or distributed), so any of them loads any
other's state under any layout. Adam's step count is a number in state.json. Learning rate, betas, decay and ε are not
read back: they belong to the running job's config and schedule.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from megatron.core.dist_checkpointing.dict_utils import nested_values
from megatron.core.dist_checkpointing.mapping import ShardedBase
from megatron.core.optimizer.distrib_optimizer import DistributedOptimizer

MAIN_PARAM_PREFIX = "optimizer.state.fp32_param."
_DISTRIBUTED_MAIN_PARAM_PREFIX = "optimizer.state.param."


def allocate_state(optimizer: Any) -> None:
    """Give torch's Adam the state that its first step would create, so that there is something to save or load into.

    megatron-core reads `step` from every parameter's state and fails where there is none yet.
    """
    for inner in _inner_optimizers(optimizer):
        if not isinstance(inner, torch.optim.Adam):
            continue  # Apex and Transformer Engine: megatron-core allocates
        for group in inner.param_groups:
            for param in group["params"]:
                if not inner.state[param]:
                    inner.state[param]["exp_avg"] = torch.zeros_like(param.data)
                    inner.state[param]["exp_avg_sq"] = torch.zeros_like(param.data)
                inner.state[param].setdefault("step", torch.tensor(0.0))


def read_step(optimizer: Any) -> int:
    """Number of updates that Adam has made."""
    for inner in _inner_optimizers(optimizer):
        for state in inner.state.values():
            if "step" in state:
                return int(state["step"])
        for group in inner.param_groups:
            if "step" in group:
                return int(group["step"])
    return 0


def sharded_state_dict(optimizer: Any, model_state: dict[str, Any], is_loading: bool) -> dict[str, Any]:
    """The optimizer's part of a checkpoint, with the keys that all optimizers share."""
    metadata = {
        "distrib_optim_sharding_type": "fully_reshardable",
        "distrib_optim_fully_reshardable_mem_efficient": _gathers_over_gloo(optimizer),
        "chained_optim_avoid_prefix": True,
    }
    state = optimizer.sharded_state_dict(model_state, is_loading=is_loading, metadata=metadata)
    for value in nested_values(state):
        if isinstance(value, ShardedBase):
            value.key = value.key.replace(_DISTRIBUTED_MAIN_PARAM_PREFIX, MAIN_PARAM_PREFIX)
    return state


def load_state_dict(optimizer: Any, loaded: dict[Any, Any], step: int) -> None:
    """Take over what was loaded for `sharded_state_dict`, and the number of updates.

    The distributed optimizer is given its tensors directly: its own `load_state_dict` looks for a step count per
    parameter among them, which torch's Adam has and the checkpoint has not.
    """
    parts = _parts(optimizer)
    states = [loaded] if len(parts) == 1 else [loaded[number] for number in range(len(parts))]
    for part, state in zip(parts, states, strict=True):
        if isinstance(part, DistributedOptimizer):
            for of_parameter in part.optimizer.state.values():
                of_parameter.pop("step", None)
            part.load_parameter_state_from_fully_reshardable(state["param_state"])
        else:
            inner_state = state.get("optimizer", state)["state"]
            inner_state["common_step"] = torch.tensor(float(step))  # megatron-core leaves a step of 0 out
            part.load_state_dict(state)
    _write_step(optimizer, step)


def _write_step(optimizer: Any, step: int) -> None:
    """Set the number of updates; each parameter gets its own tensor.

    megatron-core leaves one tensor shared by all parameters behind, which torch's multi-tensor Adam would then count
    up once for each of them.
    """
    for inner in _inner_optimizers(optimizer):
        if isinstance(inner, torch.optim.Adam):
            for state in inner.state.values():
                state["step"] = torch.tensor(float(step))
        else:
            for group in inner.param_groups:
                group["step"] = step


def _gathers_over_gloo(optimizer: Any) -> bool:
    """Gather the distributed optimizer's shards on the host of data-parallel rank 0 only, where gloo groups exist."""
    return all(getattr(part, "data_parallel_group_gloo", None) is not None for part in _parts(optimizer))


def _parts(optimizer: Any) -> list[Any]:
    return list(getattr(optimizer, "chained_optimizers", [optimizer]))


def _inner_optimizers(optimizer: Any) -> Iterator[torch.optim.Optimizer]:
    for part in _parts(optimizer):
        inner = getattr(part, "optimizer", None)
        if inner is not None:
            yield inner
