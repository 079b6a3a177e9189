"""Embedding gradients whose pages are given back train bit for bit as those that are zeroed."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest

from megatron_synE.config.model import ModelConfig
from megatron_synE.config.optimizer import OptimizerConfig
from megatron_synE.config.parallel import ParallelConfig
from megatron_synE.config.precision import PrecisionConfig
from megatron_synE.kernels import host_memory
from tests.helpers.distributed import run_distributed
from tests.helpers.training import SmallRun

MODEL = ModelConfig(transformer_impl="fused", make_vocab_size_divisible_by=4)
LEAN = OptimizerConfig(lr=1e-3, use_precision_aware_optimizer=True, exp_avg_dtype="bf16", exp_avg_sq_dtype="bf16")
CASES: dict[str, dict[str, Any]] = {
    "plain": {"parallel": ParallelConfig(use_distributed_optimizer=False, overlap_grad_reduce=False)},
    "overlapped": {"parallel": ParallelConfig(overlap_param_gather=True)},
    "bf16 moments": {"parallel": ParallelConfig(), "precision": PrecisionConfig(dtype="bf16"), "optimizer": LEAN},
}


def both() -> dict[str, Any]:
    """With pages given back for gradients of any size, and for none."""
    return {"sparse": train(0), "dense": train(2**40)}


def train(least_bytes: int) -> dict[str, Any]:
    """Losses and weights of every case, and whether its gradients are cleared by pages."""
    host_memory.LARGE_SPARSE_GRADIENT_BYTES = least_bytes
    found: dict[str, Any] = {}
    for name, case in CASES.items():
        fields = {"model": MODEL, "precision": PrecisionConfig(dtype="fp32"), **case}
        run = SmallRun(fields.pop("parallel"), **fields)
        found[name] = {
            "losses": [run.step(step).loss for step in range(4)],
            "weights": {name: p.detach().clone() for name, p in run.chunks[0].named_parameters()},
            "sparse": any(isinstance(buffer.reset, partial) for buffer in run.chunks[0].buffers),
        }
        run.close()
    return found


@pytest.mark.parametrize("world_size", [1, 2])
def test_bit_for_bit(world_size: int) -> None:
    for results in run_distributed(both, world_size):
        for name, sparse in results["sparse"].items():
            dense = results["dense"][name]
            assert sparse["sparse"] and not dense["sparse"], name
            assert sparse["losses"] == dense["losses"], name
            for weight, values in sparse["weights"].items():
                assert values.equal(dense["weights"][weight]), f"{name} {weight}"
