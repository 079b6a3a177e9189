"""What a step does with numbers that are not finite, and with the learning rate and the clip."""

from __future__ import annotations

import math
from typing import Any

import torch

from megatron_synE.config.parallel import ParallelConfig
from tests.helpers.distributed import run_distributed
from tests.helpers.training import SmallRun


def weights(run: SmallRun) -> list[torch.Tensor]:
    return [parameter.detach().clone() for chunk in run.chunks for parameter in chunk.parameters()]


def broken_gradient(distributed_optimizer: bool) -> dict[str, Any]:
    run = SmallRun(ParallelConfig(use_distributed_optimizer=distributed_optimizer))
    run.step(0)
    before = weights(run)
    # A norm: the matrices of the fused layers add their gradients to the main gradient without passing a hook.
    victim = run.chunks[0].module.decoder.layers[1].pre_mlp_layernorm.weight
    handle = victim.register_hook(lambda gradient: gradient * math.nan if run.runtime.rank == 1 else gradient)
    broken = run.step(1)
    unchanged = all(torch.equal(a, b) for a, b in zip(before, weights(run), strict=True))
    handle.remove()
    healthy = run.step(2)
    return {
        "broken": [broken.loss, broken.grad_norm, broken.updated],
        "unchanged": unchanged,
        "healthy": [healthy.loss, healthy.grad_norm, healthy.updated],
        "weights": [weight.double().sum().item() for weight in weights(run)],
    }


def test_one_nan_on_one_process_leaves_all_weights_as_they_are() -> None:
    for distributed_optimizer in (False, True):
        results = run_distributed(broken_gradient, 2, distributed_optimizer)
        for result in results:
            loss, grad_norm, updated = result["broken"]
            assert math.isfinite(loss)
            assert math.isnan(grad_norm)
            assert not updated
            assert result["unchanged"]
            assert result["healthy"][2]
            assert all(math.isfinite(value) for value in (*result["healthy"][:2], *result["weights"]))
        assert results[0]["weights"] == results[1]["weights"]
