"""A state with NaN or infinity in it is no state to go back to."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from megatron.core.dist_checkpointing.dict_utils import nested_values
from megatron.core.dist_checkpointing.mapping import ShardedTensor

from megatron_synE.checkpoint.collective import raise_first


class NonFiniteState(FloatingPointError):
    """Weights or optimizer state hold NaN or infinity, so that they are not saved."""


def check_finite(sharded: Mapping[str, Any], step: int) -> None:
    """Refuse tensors with NaN or infinity, weights before moments. Called by all ranks, before anything is written.

    Raises:
        NonFiniteState: on all ranks; names the first tensor of the first rank that has one.
    """
    tensors = [value for value in nested_values(sharded) if isinstance(value, ShardedTensor)]
    floating = {tensor.key: tensor.data for tensor in tensors if tensor.data.is_floating_point()}
    found = first_non_finite(floating)
    problem = NonFiniteState(
        f"checkpoint.save: step {step} is not saved, {found} holds NaN or infinity; earlier checkpoints are untouched. "
        "Resume from the last one with a lower optimizer.lr, or pass over what these steps read"
    )
    raise_first(problem if found else None)


def first_non_finite(tensors: Mapping[str, torch.Tensor]) -> str | None:
    """The name of the first tensor with NaN or infinity; None where all are finite.

    A sum reads a tensor once, at the rate of memory, and cannot miss either; only what it suspects, as it may itself
    overflow, is looked at element by element. The host waits once for each device.
    """
    sums: dict[torch.device, list[torch.Tensor]] = {}
    names: dict[torch.device, list[str]] = {}
    for name, tensor in tensors.items():
        sums.setdefault(tensor.device, []).append(tensor.detach().sum().float())
        names.setdefault(tensor.device, []).append(name)
    suspects = {
        name
        for device in sums
        for name, finite in zip(names[device], torch.stack(sums[device]).isfinite().tolist(), strict=True)
        if not finite
    }
    return next((name for name in tensors if name in suspects and not bool(tensors[name].isfinite().all())), None)
