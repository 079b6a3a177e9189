"""Wrong numbers of processes, and what a runtime tells."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from megatron_synE.config.parallel import ParallelConfig
from megatron_synE.runtime import choose_device, initialize
from tests.helpers.distributed import run_distributed


def test_too_few_processes_are_refused_before_any_group_is_made(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "3")
    with pytest.raises(ValueError, match="multiple of 2 processes, but 3 were started"):
        initialize(ParallelConfig(tensor_model_parallel_size=2))
    assert not torch.distributed.is_initialized()


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_missing_gpu_is_told() -> None:
    with pytest.raises(ValueError, match=r"parallel\.device: cuda, but torch sees no GPU"):
        choose_device("cuda")


def ranks() -> dict[str, Any]:
    runtime = initialize(ParallelConfig(tensor_model_parallel_size=2))
    return {
        "rank": runtime.rank, "tp": runtime.tensor_model_parallel_rank, "dp": runtime.data_parallel_rank,
        "dp_size": runtime.data_parallel_size, "draw": torch.rand(1),
    }  # fmt: skip


def test_ranks_of_tensor_and_data_parallelism() -> None:
    results = run_distributed(ranks, 4)
    assert [(r["tp"], r["dp"]) for r in results] == [(0, 0), (1, 0), (0, 1), (1, 1)]
    assert {r["dp_size"] for r in results} == {2}
    assert len({float(r["draw"]) for r in results}) == 1, "the default generator agrees over tensor and data ranks"
