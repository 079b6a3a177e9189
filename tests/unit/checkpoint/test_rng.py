from __future__ import annotations

import random

import numpy as np
import torch

from megatron_synE.checkpoint import rng
from tests.helpers.distributed import run_distributed


def test_packing_ignores_the_filling() -> None:
    state = {"a": torch.arange(5), "b": torch.tensor(2.5, dtype=torch.float64), "c": torch.zeros(0, dtype=torch.uint8)}
    packed = rng.pack(state)
    unpacked = rng.unpack(torch.cat([packed, torch.zeros(13, dtype=torch.uint8)]))
    assert set(unpacked) == set(state)
    for name, tensor in state.items():
        assert unpacked[name].dtype == tensor.dtype
        assert torch.equal(unpacked[name], tensor)


def _draw() -> list[float]:
    from megatron.core.tensor_parallel import get_cuda_rng_tracker

    with get_cuda_rng_tracker().fork():
        forked = float(torch.rand(()))
    return [random.random(), random.gauss(0, 1), float(np.random.rand()), float(np.random.randn()),
            float(torch.rand(())), forked]  # fmt: skip


def _draw_twice() -> list[list[float]]:
    from megatron_synE.config.parallel import ParallelConfig
    from megatron_synE.runtime import initialize

    initialize(ParallelConfig())
    _draw()  # leaves half a pair of gaussians behind
    state = rng.collect_rng_state()
    first = [_draw(), _draw()]
    rng.restore_rng_state(rng.unpack(rng.pack(state)))
    return [*first, _draw(), _draw()]


def test_all_generators_go_back() -> None:
    (a, b, again_a, again_b) = run_distributed(_draw_twice, 1)[0]
    assert [a, b] == [again_a, again_b]
    assert a != b
