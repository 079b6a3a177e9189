"""How the host's allocator treats large buffers."""

from __future__ import annotations

import torch

from megatron_synE.kernels import _native

# Below it, freeing and touching fresh pages again in every step costs more time than it saves memory: 4 MiB saves
# 1 to 3 % of the peak at a vocabulary of 128,256 and costs 5 to 15 % of the step's time (2 cores, hidden 512, 32,000
# ids). The logits of linear_cross_entropy's chunk stay below it.
LARGE_BUFFER_BYTES = 40 * 2**20
# What the heap of the smaller buffers may keep free at its end: a step's activations, which the next step needs again.
FREE_HEAP_BYTES = 2**30


def return_large_buffers(device: torch.device) -> bool:
    """Let freed buffers above LARGE_BUFFER_BYTES go back to the system at once; whether that was possible.

    Only for the host and glibc. It lowers the peak of a training step by what a fragmented heap would keep.
    """
    module = _native.extension("cpu") if device.type == "cpu" else None
    return module is not None and module.set_heap_limits(LARGE_BUFFER_BYTES, FREE_HEAP_BYTES)
