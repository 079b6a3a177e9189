"""The random number generators of one process, as tensors."""

from __future__ import annotations

import json
import math
import random
from typing import Any

import numpy as np
import torch

from megatron_synE.checkpoint.files import DamagedCheckpoint

RngState = dict[str, torch.Tensor]
"""Flat: one tensor for each generator, or part of one."""


def collect_rng_state() -> RngState:
    """States of Python's, numpy's, torch's, the device's and megatron-core's forked generators."""
    from megatron.core.tensor_parallel import get_cuda_rng_tracker

    _, words, gauss = random.getstate()
    numpy_state: Any = np.random.get_state(legacy=True)
    _, keys, position, has_gauss, cached_gaussian = numpy_state
    state = {
        "python.words": torch.tensor(words, dtype=torch.int64),
        "python.gauss": torch.tensor(math.nan if gauss is None else gauss, dtype=torch.float64),
        "numpy.keys": torch.from_numpy(keys.astype(np.int64)),
        "numpy.position": torch.tensor([position, has_gauss], dtype=torch.int64),
        "numpy.gauss": torch.tensor(cached_gaussian, dtype=torch.float64),
        "torch": torch.get_rng_state(),
        "device": torch.cuda.get_rng_state(),
    }
    for name, forked in get_cuda_rng_tracker().get_states().items():
        assert isinstance(forked, torch.Tensor), f"{name}: a generator for CUDA graphs is not supported"
        state[f"forked.{name}"] = forked
    return state


def restore_rng_state(state: RngState) -> None:
    """Put all generators back to what `collect_rng_state` saw."""
    from megatron.core.tensor_parallel import get_cuda_rng_tracker

    gauss = float(state["python.gauss"])
    random.setstate((3, tuple(state["python.words"].tolist()), None if math.isnan(gauss) else gauss))
    position, has_gauss = state["numpy.position"].tolist()
    keys = state["numpy.keys"].numpy().astype(np.uint32)
    np.random.set_state(("MT19937", keys, position, has_gauss, float(state["numpy.gauss"])))
    forked = {key.removeprefix("forked."): value for key, value in state.items() if key.startswith("forked.")}
    get_cuda_rng_tracker().set_states(forked)
    torch.cuda.set_rng_state(state["device"])
    torch.set_rng_state(state["torch"])


def pack(state: RngState) -> torch.Tensor:
    """One uint8 vector (a safetensors file in memory)."""
    from safetensors.torch import save

    content = save({name: tensor.detach().cpu().contiguous() for name, tensor in state.items()})
    return torch.frombuffer(bytearray(content), dtype=torch.uint8)


def unpack(packed: torch.Tensor) -> RngState:
    """The state of `pack`; zeros that fill the vector up to a common length are ignored.

    Raises:
        DamagedCheckpoint: it is something else.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load

    content = packed.numpy().tobytes()
    try:
        return dict(load(content[: _safetensors_length_bytes(content)]))
    except (SafetensorError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise DamagedCheckpoint("rng_state: not the states of generators; use another checkpoint") from None


def _safetensors_length_bytes(content: bytes) -> int:
    """Length by safetensors' own header: u64 length of the JSON that names every tensor's end."""
    header_bytes = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + header_bytes])
    return 8 + header_bytes + max((entry["data_offsets"][1] for entry in header.values()), default=0)
