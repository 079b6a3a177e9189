"""Wrong numbers of processes, and what a runtime tells."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import Any

import pytest
import torch

from megatron_synE.config.parallel import ParallelConfig
from megatron_synE.runtime import choose_device, initialize, process_groups
from tests.helpers.commands import ROOT
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


class StoppedHere(Exception):
    pass


def started_groups(monkeypatch: pytest.MonkeyPatch, device: torch.device) -> dict[str, Any]:
    """What initialize gives torch.distributed for this device, and what CUDA's driver would have read by then."""
    seen: dict[str, Any] = {"connections": []}

    def init_process_group(backend: str, **arguments: Any) -> None:
        seen.update(backend=backend, **arguments)
        raise StoppedHere

    def look() -> None:
        seen["connections"].append(os.environ.get("CUDA_DEVICE_MAX_CONNECTIONS"))

    monkeypatch.setattr(process_groups, "choose_device", lambda wish, local_rank: (look(), device)[1])
    monkeypatch.setattr(process_groups.cpu, "install", lambda: None)
    monkeypatch.setattr(torch.cuda, "set_device", lambda device: look())
    monkeypatch.setattr(torch.distributed, "init_process_group", init_process_group)
    return seen


def test_nccl_is_bound_to_its_gpu_and_gloo_to_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    for device, backend, bound in (("cuda:3", "nccl", torch.device("cuda:3")), ("cpu", "gloo", None)):
        seen = started_groups(monkeypatch, torch.device(device))
        with pytest.raises(StoppedHere):
            initialize(ParallelConfig())
        assert (seen["backend"], seen["device_id"], seen["rank"], seen["world_size"]) == (backend, bound, 0, 1)


@pytest.mark.parametrize(
    "sizes, given, expected",
    [
        ({}, None, None),
        ({"pipeline_model_parallel_size": 2}, None, None),
        ({"tensor_model_parallel_size": 2}, None, "1"),
        ({"context_parallel_size": 2}, None, "1"),
        ({"tensor_model_parallel_size": 2}, "32", "32"),
    ],
)
def test_the_number_of_hardware_queues_is_set_before_cuda_starts(
    monkeypatch: pytest.MonkeyPatch, sizes: dict[str, int], given: str | None, expected: str | None
) -> None:
    monkeypatch.setenv("CUDA_DEVICE_MAX_CONNECTIONS", "")  # so that what is set in the test goes with it
    monkeypatch.delenv("CUDA_DEVICE_MAX_CONNECTIONS")
    if given is not None:
        monkeypatch.setenv("CUDA_DEVICE_MAX_CONNECTIONS", given)
    monkeypatch.setenv("WORLD_SIZE", "2")
    seen = started_groups(monkeypatch, torch.device("cuda:0"))
    with pytest.raises(StoppedHere):
        initialize(ParallelConfig(**sizes))
    assert seen["connections"] == [expected, expected]


QUESTIONS_TO_CUDA = """
import os, sys, torch
seen = []
def watch(name, answer):
    setattr(torch.cuda, name, lambda *a, **k: (seen.append(os.environ.get("CUDA_DEVICE_MAX_CONNECTIONS")), answer)[1])
for name, answer in (("is_available", False), ("device_count", 0), ("_lazy_init", None), ("init", None)):
    watch(name, answer)
import pretrain_llama3_synE
pretrain_llama3_synE.main(["--parallel.tensor_model_parallel_size", sys.argv[1]])
print("seen", set(seen))
"""


@pytest.mark.parametrize("size, expected", [("1", "{None}"), ("2", "{'1'}")])
def test_the_entry_asks_cuda_nothing_before_that(size: str, expected: str) -> None:
    environment = {name: value for name, value in os.environ.items() if name != "CUDA_DEVICE_MAX_CONNECTIONS"}
    done = subprocess.run(
        [sys.executable, "-c", QUESTIONS_TO_CUDA, size], cwd=ROOT, env=environment, capture_output=True, text=True,
        timeout=240,
    )  # fmt: skip
    assert done.stdout.splitlines()[-1] == f"seen {expected}", done.stdout + done.stderr
