"""What our own parallel linear layers share: which layers they replace, and the collectives beside the products.

Legend: N tokens of this process (all of the group's once gathered), I input features.
"""

from __future__ import annotations

from typing import Any

import torch
from megatron.core.tensor_parallel.layers import dist_all_gather_func, dist_reduce_scatter_func

from megatron_synE.kernels.weight_gradient import holder_of_main_grad


def linear_layers(layer: Any) -> list[Any]:
    """The four of a Llama layer."""
    attention, mlp = layer.self_attention, layer.mlp
    return [attention.linear_qkv, attention.linear_proj, mlp.linear_fc1, mlp.linear_fc2]


def replace_linear_layers(layer: Any, column_class: type, row_class: type) -> None:
    """Give the four of a Llama layer another class with the same parameters, in place."""
    for linear in (layer.self_attention.linear_qkv, layer.mlp.linear_fc1):
        linear.__class__ = column_class
    for linear in (layer.self_attention.linear_proj, layer.mlp.linear_fc2):
        linear.__class__ = row_class


def main_grad_of(weight: torch.Tensor) -> torch.Tensor | None:
    """Where megatron-core wants the weight's gradient added, if it does."""
    return holder_of_main_grad(weight).main_grad if hasattr(weight, "main_grad") else None


def gathered(own_NI: torch.Tensor, group: Any) -> tuple[torch.Tensor, Any]:
    """The rows of all processes of the group, in rank order, once the handle (None: at once) is done."""
    if group is None:
        return own_NI, None
    whole_NI = own_NI.new_empty(len(own_NI) * group.size(), own_NI.shape[1])
    return whole_NI, dist_all_gather_func(whole_NI, own_NI.contiguous(), group=group, async_op=True)


def reduce_input_gradient(
    dinput_NI: torch.Tensor, sequence_group: Any, tp_group: Any, allreduce: bool
) -> tuple[torch.Tensor, Any]:
    """The sum over the processes, once the handle (None: at once) is done: of this one's rows under sequence
    parallelism, else of all rows where `allreduce` asks for it.
    """
    if sequence_group is not None:
        own_NI = dinput_NI.new_empty(len(dinput_NI) // sequence_group.size(), dinput_NI.shape[1])
        return own_NI, dist_reduce_scatter_func(own_NI, dinput_NI, group=sequence_group, async_op=True)
    if allreduce:
        return dinput_NI, torch.distributed.all_reduce(dinput_NI, group=tp_group, async_op=True)
    return dinput_NI, None
