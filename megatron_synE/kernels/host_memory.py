"""How the host's memory treats large buffers."""

from __future__ import annotations

import torch

from megatron_synE.kernels import _native
from megatron_synE.kernels.selection import is_compiled

# Below it, freeing and touching fresh pages again in every step costs more time than it saves memory: 4 MiB saves
# 1 to 3 % of the peak at a vocabulary of 128,256 and costs 5 to 15 % of the step's time (2 cores, hidden 512, 32,000
# ids). The logits of linear_cross_entropy's chunk stay below it.
LARGE_BUFFER_BYTES = 40 * 2**20
# The same for gradients that hold few rows: reading a page that was given back costs a microsecond.
LARGE_SPARSE_GRADIENT_BYTES = 128 * 2**20
# What the heap of the smaller buffers may keep free at its end: a step's activations, which the next step needs again.
FREE_HEAP_BYTES = 2**30


def return_large_buffers(device: torch.device) -> bool:
    """Let freed buffers above LARGE_BUFFER_BYTES go back to the system at once; whether that was possible.

    Only for the host and glibc. It lowers the peak of a training step by what a fragmented heap would keep.
    """
    module = _native.extension("cpu") if device.type == "cpu" else None
    return module is not None and module.set_heap_limits(LARGE_BUFFER_BYTES, FREE_HEAP_BYTES)


def saves_memory_when_sparse(gradient: torch.Tensor) -> bool:
    """Whether rows that are never written are worth `clear_` instead of zeros."""
    return gradient.device.type == "cpu" and gradient.nbytes >= LARGE_SPARSE_GRADIENT_BYTES


def clear_(values: torch.Tensor) -> None:
    """Set a tensor to zero; on the host its whole pages go back to the system until they are written again.

    For memory of torch's own allocator, which no other process shares. What is only read takes none.
    """
    module = _native.extension("cpu") if values.device.type == "cpu" else None
    if module is None or not values.is_contiguous() or values.is_shared():
        values.zero_()
    else:
        module.clear_pages(_native.address(values), values.nbytes)


def scale_written_(values: torch.Tensor, factor: torch.Tensor | float) -> None:
    """values *= factor (finite); on the host, runs of zeros in a contiguous fp32 tensor are only read: see `clear_`."""
    on_host = values.device.type == "cpu" and is_compiled("adamw", values)
    if on_host and values.is_contiguous() and values.dtype == torch.float32:
        _native.launch("scale_in_place", values.device, _native.address(values), values.numel(), float(factor))
    else:
        values.mul_(factor)
