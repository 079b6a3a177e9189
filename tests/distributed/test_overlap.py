"""What overlaps communication changes when numbers move, and no number."""

from __future__ import annotations

import sys
from types import ModuleType
from typing import Any

import pytest

from megatron_synE.config.model import ModelConfig
from megatron_synE.config.parallel import ParallelConfig
from megatron_synE.config.precision import PrecisionConfig
from tests.helpers.distributed import run_distributed
from tests.helpers.training import ARCHITECTURE, SmallRun

STEPS = 3
SMALL_BUCKET = 5000
"""Parameters: many buckets in a model of the tests."""


def losses_and_buckets(layouts: list[dict[str, Any]]) -> list[list[float]]:
    """The losses of some steps, and before them the number of buckets of this process."""
    found = []
    for fields in layouts:
        run = SmallRun(ParallelConfig(**fields), model=ModelConfig(make_vocab_size_divisible_by=4))
        buckets = sum(len(buffer.buckets) for chunk in run.chunks for buffer in chunk.buffers)
        found.append([float(buckets)] + [run.step(step).loss for step in range(STEPS)])
        run.close()
    return found


def test_overlaps_change_no_loss() -> None:
    pipeline = {"pipeline_model_parallel_size": 2, "virtual_pipeline_model_parallel_size": 2}
    layouts: list[dict[str, Any]] = [
        {"overlap_grad_reduce": False},
        {"overlap_param_gather": True, "ddp_bucket_size": SMALL_BUCKET, "ddp_pad_buckets_for_high_nccl_busbw": True},
        {**pipeline, "overlap_grad_reduce": False},
        {**pipeline, "overlap_param_gather": True, "align_grad_reduce": True, "align_param_gather": True},
        {**pipeline, "overlap_p2p_comm_warmup_flush": True},
    ]
    for plain, bucketed, stages, aligned, flushed in run_distributed(losses_and_buckets, 2, layouts):
        assert bucketed[0] > plain[0]
        assert bucketed[1:] == plain[1:]
        assert stages[1:] == aligned[1:] == flushed[1:]


def test_transformer_engine_gets_buffers_of_the_step(monkeypatch: pytest.MonkeyPatch) -> None:
    from megatron_synE.model.tp_comm_overlap import allocate_tp_comm_buffers

    asked: list[dict[str, Any]] = []
    base = ModuleType("transformer_engine.pytorch.module.base")
    base.initialize_ub = lambda **arguments: asked.append(arguments)  # type: ignore[attr-defined]
    package = ModuleType("transformer_engine.pytorch.module")
    package.base = base  # type: ignore[attr-defined]
    for name in ("transformer_engine", "transformer_engine.pytorch"):
        monkeypatch.setitem(sys.modules, name, ModuleType(name))
    monkeypatch.setitem(sys.modules, package.__name__, package)
    allocate_tp_comm_buffers(
        ARCHITECTURE, ParallelConfig(tensor_model_parallel_size=2, sequence_parallel=True), PrecisionConfig(),
        tokens_per_microbatch=64,
    )  # fmt: skip
    assert asked == [{"shape": [64, 64], "tp_size": 2, "use_fp8": False, "bootstrap_backend": "nccl"}]
