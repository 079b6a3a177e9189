"""What megatron-core's optimizers need around a save and a load.

On disk the optimizer's tensors are `optimizer.state.{fp32_param, exp_avg, exp_avg_sq}.{parameter}` in the shape of the
whole parameter and in fp32, whichever optimizer wrote them (plain, mixed-precision, distributed or precision-aware), so
any of them loads any other's state under any layout. Adam's step count is a number in state.json. Learning rate, betas,
decay and ε are not read back: they belong to the running job's config and schedule.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from megatron.core.optimizer.distrib_optimizer import DistributedOptimizer

from megatron_synE.checkpoint.distributed_optimizer import MAIN_PARAM_PREFIX, distributed_state, take_over_state

__all__ = ["MAIN_PARAM_PREFIX", "allocate_state", "load_state_dict", "read_step", "sharded_state_dict"]


def allocate_state(optimizer: Any) -> None:
    """Give Adam the state that its first step would create, so that there is something to save or to load into."""
    for inner in _inner_optimizers(optimizer):
        for group in inner.param_groups:
            for param in group["params"]:
                state = inner.state[param]
                if not state and optimizer.config.use_precision_aware_optimizer:
                    inner.initialize_state(param, inner.store_param_remainders and param.dtype == torch.bfloat16)
                elif not state:
                    state["exp_avg"] = torch.zeros_like(param.data)
                    state["exp_avg_sq"] = torch.zeros_like(param.data)
                if isinstance(inner, torch.optim.Adam):  # all others count by group
                    state.setdefault("step", torch.tensor(0.0))


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


def sharded_state_dict(optimizer: Any, model_state: dict[str, Any], is_loading: bool) -> dict[Any, Any]:
    """The optimizer's part of a checkpoint, by number of the optimizer in a chain."""
    return {
        number: distributed_state(part, model_state)
        if isinstance(part, DistributedOptimizer)
        else part.sharded_state_dict(model_state, is_loading=is_loading)
        for number, part in enumerate(_parts(optimizer))
    }


def load_state_dict(optimizer: Any, loaded: dict[Any, Any], step: int) -> None:
    """Take over what was loaded for `sharded_state_dict`, and the number of updates.

    The distributed optimizer's fp32 tensors were filled in place.
    """
    for number, part in enumerate(_parts(optimizer)):
        if isinstance(part, DistributedOptimizer):
            take_over_state(part, loaded[number])
        else:
            inner_state = loaded[number].get("optimizer", loaded[number])["state"]
            inner_state["common_step"] = torch.tensor(float(step))  # megatron-core leaves a step of 0 out
            part.load_state_dict(loaded[number])
    _write_step(optimizer, step)


def _write_step(optimizer: Any, step: int) -> None:
    """Set the number of updates. Each parameter gets its own tensor: torch's multi-tensor Adam counts each up."""
    for inner in _inner_optimizers(optimizer):
        if isinstance(inner, torch.optim.Adam):
            for state in inner.state.values():
                state["step"] = torch.tensor(float(step))
        else:
            for group in inner.param_groups:
                group["step"] = step


def _parts(optimizer: Any) -> list[Any]:
    return list(getattr(optimizer, "chained_optimizers", [optimizer]))


def _inner_optimizers(optimizer: Any) -> Iterator[Any]:
    for part in _parts(optimizer):
        inner = getattr(part, "optimizer", None)
        if inner is not None:
            yield inner
