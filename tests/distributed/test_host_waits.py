"""A training step makes the host wait for its device once."""

from __future__ import annotations

import tempfile
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
import torch

from tests.helpers.distributed import run_distributed
from tests.helpers.host_waits import HostWaits
from tests.helpers.runs import train, write_job

ALLOWED = {
    # The one wait for the device.
    ("megatron_synE/training/step.py:_read", "tolist"): 1,
    # What follows reads tensors that are the host's on a GPU too. What all hosts agree on:
    ("megatron_synE/training/faults.py:_agree", "tolist"): 1,
    # torch keeps the number of updates of each parameter in a CPU tensor.
    ("megatron_synE/kernels/fused_adamw.py:_buffers", "__int__"): 9,
    # The attention of a CPU takes documents as numbers; that of a GPU, and RoPE, read them on the device.
    ("megatron_synE/kernels/spans.py:on_host", "tolist"): 8,
}
PLACE_OF_PLANTS = "megatron/core/pipeline_parallel/schedules.py:forward_step_calc_loss"
# What is planted, and under which name it is found.
PLANTS = {
    "item": "item", "tolist": "tolist", "cpu": "cpu", "truth": "__bool__", "nonzero": "nonzero", "mask": "__getitem__",
    "index": "__getitem__", "synchronize": "synchronize", "copy": "to", "constant": "tensor",
}  # fmt: skip



def run_with(watch: Callable[[], Any], plant: str | None = None) -> None:
    """A run of four steps; inside of `watch()` the third one, with all that the loop does in it."""
    from megatron_synE.training import forward, loop

    steps: list[int] = []
    one_step, anywhere, loss = loop.TrainingLoop._one_step, loop.StopSignal.anywhere, forward._loss

    def watched_step(self: Any) -> None:
        steps.append(1)
        with watch() if len(steps) == 3 else nullcontext():
            return one_step(self)

    def watched_agreement(self: Any, *args: Any) -> bool:
        with watch() if len(steps) == 3 else nullcontext():
            return anywhere(self, *args)

    def planted_loss(token_losses_BS: torch.Tensor, **arguments: Any) -> Any:
        if plant is not None:
            _plant(plant, token_losses_BS.detach())
        return loss(token_losses_BS, **arguments)

    with tempfile.TemporaryDirectory() as folder:
        arguments = write_job(
            Path(folder), data={"isolate_documents": True}, precision={"dtype": "bf16"}, training={"train_steps": 4},
            checkpoint={"save_interval_steps": 100}, evaluation={"interval_steps": 100},
        )  # fmt: skip
        with (
            patch.object(loop.TrainingLoop, "_one_step", watched_step),
            patch.object(loop.StopSignal, "anywhere", watched_agreement),
            patch.object(forward, "_loss", planted_loss),
        ):
            train(arguments)


def counted(plants: list[str | None]) -> list[dict[str, int]]:
    results = []
    for plant in plants:
        waits = HostWaits()
        run_with(lambda waits=waits: waits, plant)  # type: ignore[misc]
        results.append({"|".join(key): count for key, count in waits.counts.items()})
    return results


def _plant(kind: str, values: torch.Tensor) -> None:
    match kind:
        case "item":
            values.sum().item()
        case "tolist":
            values.tolist()
        case "cpu":
            values.cpu()
        case "truth":
            bool(values.sum() > 0)
        case "nonzero":
            torch.nonzero(values)
        case "mask":
            values[values > 0]
        case "index":
            values.flatten()[values.flatten().argmax()]
        case "synchronize":
            torch.cuda.synchronize()
        case "copy":
            values.to(torch.device("cpu"))
        case "constant":
            torch.tensor([1.0], device=values.device)


def test_a_step_waits_for_the_device_once() -> None:
    plants = [None, *PLANTS]
    (results,) = run_distributed(counted, 1, plants)
    for plant, result in zip(plants, results, strict=True):
        counts = {tuple(key.split("|")): count for key, count in result.items()}
        planted = {} if plant is None else {(PLACE_OF_PLANTS, PLANTS[plant]): 4}  # in each of four micro-batches
        assert counts == {**ALLOWED, **planted}, plant


@contextmanager
def told_by_cuda(told: list[str]) -> Iterator[None]:
    """torch's own list of the waits that CUDA calls make."""
    torch.cuda.set_sync_debug_mode("warn")
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            yield
    finally:
        torch.cuda.set_sync_debug_mode("default")
    told += [str(one.message) for one in caught if "synchronizing" in str(one.message)]


def waits_on_a_gpu() -> list[str]:
    told: list[str] = []
    run_with(lambda: told_by_cuda(told))
    return told


@pytest.mark.requires_gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no GPU")
def test_a_step_on_a_gpu_waits_once_by_the_word_of_cuda() -> None:
    (told,) = run_distributed(waits_on_a_gpu, 1)
    assert len(told) == 1, told
