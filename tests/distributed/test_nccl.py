"""One GPU trains as the CPU does: the same losses over nccl as over gloo, for every optimizer and kind of layer."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import torch

from megatron_synE.config.model import ModelConfig
from megatron_synE.config.optimizer import OptimizerConfig
from megatron_synE.config.parallel import ParallelConfig
from megatron_synE.config.precision import PrecisionConfig
from tests.distributed.test_parallel_layouts import make_checkpoint
from tests.helpers.distributed import run_distributed
from tests.helpers.training import SmallRun

STEPS = 10
FP32, BF16 = PrecisionConfig(dtype="fp32"), PrecisionConfig(dtype="bf16")
PLAIN = ParallelConfig(use_distributed_optimizer=False, overlap_grad_reduce=False)
OVERLAPPED = ParallelConfig(overlap_param_gather=True)
LEAN = OptimizerConfig(lr=1e-3, use_precision_aware_optimizer=True, exp_avg_dtype="bf16", exp_avg_sq_dtype="bf16")
CASES: dict[str, dict[str, Any]] = {
    "local": {"impl": "local"},
    "fused": {"impl": "fused"},
    "isolated": {"impl": "fused", "isolate": True},
    "recomputed": {"impl": "fused", "recompute": "full"},
    "plain optimizer": {"impl": "fused", "parallel": PLAIN},
    "overlapped": {"impl": "fused", "parallel": OVERLAPPED},
    "bf16": {"impl": "fused", "precision": BF16},
    "bf16 moments": {"impl": "fused", "precision": BF16, "optimizer": LEAN},
}
TOLERANCE = {"fp32": 1e-4, "bf16": 1e-2}


def losses(checkpoint: str, hide_gpu: bool) -> dict[str, Any]:
    """Losses of every case, and the backend that they were reduced over."""
    if hide_gpu:
        os.environ["CUDA_VISIBLE_DEVICES"] = ""
    found: dict[str, Any] = {}
    for name, case in CASES.items():
        model = ModelConfig(
            make_vocab_size_divisible_by=4, transformer_impl=case["impl"], recompute=case.get("recompute", "none")
        )
        run = SmallRun(
            case.get("parallel", ParallelConfig()), checkpoint=checkpoint, model=model,
            isolate_documents=case.get("isolate", False), precision=case.get("precision", FP32),
            optimizer=case.get("optimizer", OptimizerConfig(lr=1e-3)),
        )  # fmt: skip
        found[name] = [run.step(step).loss for step in range(STEPS)]
        run.close()
    return {"losses": found, "backend": torch.distributed.get_backend()}


@pytest.mark.requires_gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")
def test_one_gpu_trains_as_the_cpu(tmp_path: Path) -> None:
    run_distributed(make_checkpoint, 1, str(tmp_path))
    (on_gpu,) = run_distributed(losses, 1, str(tmp_path), False)
    (on_cpu,) = run_distributed(losses, 1, str(tmp_path), True)
    assert (on_gpu["backend"], on_cpu["backend"]) == ("nccl", "gloo")
    worst = {}
    for name, case in CASES.items():
        gpu, cpu = (torch.tensor(run["losses"][name], dtype=torch.float64) for run in (on_gpu, on_cpu))
        relative = float((gpu / cpu - 1).abs().max())
        if relative > TOLERANCE[case.get("precision", FP32).dtype]:
            worst[name] = relative
    assert not worst
