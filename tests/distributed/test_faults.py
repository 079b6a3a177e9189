"""Processes that agree to stop, drop a step without a trace, and tell of a failure once."""

from __future__ import annotations

import os
import signal
import time
from typing import Any

import torch

from megatron_synE.config.parallel import ParallelConfig
from megatron_synE.runtime import initialize
from megatron_synE.runtime.peers import Peers
from megatron_synE.runtime.watchdog import Watchdog
from megatron_synE.training.faults import StepDropped, StopSignal
from tests.helpers.distributed import run_distributed
from tests.helpers.training import SmallRun


def told_on_one() -> dict[str, Any]:
    stop = StopSignal()
    stop.install()
    runtime = initialize(ParallelConfig())
    stop.meet(Peers.meet())
    before = stop.anywhere(runtime.host_group)
    if runtime.rank == 1:
        os.kill(os.getpid(), signal.SIGUSR1)
        assert stop.wait(30)
    after = stop.anywhere(runtime.host_group)
    stop.finish()
    return {"before": before, "after": after, "told": stop.told}


def test_one_process_is_told_and_all_stop() -> None:
    results = run_distributed(told_on_one, 2)
    assert [(r["before"], r["after"]) for r in results] == [(False, True), (False, True)]
    assert [r["told"] for r in results] == [False, True]


def first_of_all() -> dict[str, Any]:
    initialize(ParallelConfig())
    peers = Peers.meet()
    firsts = [peers.is_first(topic) for topic in ("a", "b", "c")]
    peers.write(f"text of {peers.rank}", "hello")
    torch.distributed.barrier()
    texts = [peers.read(f"text of {rank}") for rank in range(3)]
    return {"firsts": firsts, "texts": str(texts), "dead": peers.dead(), "states": [peers.state(0), peers.state(1)]}


def test_each_topic_has_one_first_process() -> None:
    results = run_distributed(first_of_all, 2)
    assert [a != b for a, b in zip(results[0]["firsts"], results[1]["firsts"], strict=True)] == [True] * 3
    for result in results:
        assert result["texts"] == "['hello', 'hello', None]" and result["dead"] == []
        assert set(result["states"]) <= {"running", "sleeping", "waiting for a disk"}


def dropped_step(overlap: bool) -> dict[str, Any]:
    run = SmallRun(ParallelConfig(overlap_grad_reduce=overlap))
    from megatron_synE.training.step import train_step

    stop = StopSignal()
    stop.install()
    run.step(0)
    before = [parameter.detach().clone() for chunk in run.chunks for parameter in chunk.parameters()]

    def drop_before_the_second(number: int) -> None:
        if number == 1 and run.runtime.rank == 0:
            os.kill(os.getpid(), signal.SIGTERM)
            stop.wait(30)
        stop.drop_if_told(run.runtime.host_group)

    dropped = False
    try:
        train_step(run.chunks, run.optimizer, run.microbatches(1), learning_rate=1e-3, num_components=3,
                   before_microbatch=drop_before_the_second)  # fmt: skip
    except StepDropped:
        dropped = True
    after = [parameter.detach() for chunk in run.chunks for parameter in chunk.parameters()]
    same = all(torch.equal(a, b) for a, b in zip(before, after, strict=True))
    stop.finish()
    return {"dropped": dropped, "same": same, "loss": run.step(1).loss}


def undisturbed() -> float:
    run = SmallRun(ParallelConfig())
    run.step(0)
    return run.step(1).loss


def test_a_dropped_step_leaves_no_trace() -> None:
    expected = run_distributed(undisturbed, 2)
    for overlap in (True, False):
        results = run_distributed(dropped_step, 2, overlap)
        assert all(r["dropped"] and r["same"] for r in results)
        assert [r["loss"] for r in results] == expected


def short_steps_are_finished() -> bool:
    stop = StopSignal()
    stop.install()
    runtime = initialize(ParallelConfig())
    stop.anywhere(runtime.host_group, step_seconds=0.1)
    os.kill(os.getpid(), signal.SIGTERM)
    stop.wait(30)
    stop.drop_if_told(runtime.host_group)
    stopped = stop.anywhere(runtime.host_group, step_seconds=60.0 if runtime.rank == 0 else 0.1)
    try:
        stop.drop_if_told(runtime.host_group)
    except StepDropped:
        stop.finish()
        return stopped
    return False


def test_only_long_steps_are_dropped_and_one_slow_process_makes_them_long() -> None:
    assert run_distributed(short_steps_are_finished, 2) == [True, True]


def paused(folder: str) -> dict[str, Any]:
    """Process 1 beats no more for a while that is shorter than the timeout."""
    initialize(ParallelConfig())
    peers = Peers.meet()
    told: list[str] = []
    watchdog = Watchdog(
        peers, hang_timeout_seconds=6.0, slow_timeout_seconds=6.0, folder=None, launcher=None,
        on_launcher_gone=lambda: None, tell=told.append,
    )  # fmt: skip
    watchdog.start()
    for number in range(8):
        watchdog.beat(f"step {number}")
        time.sleep(2.0 if number == 3 and peers.rank == 1 else 0.1)
        torch.distributed.barrier()
    watchdog.stop()
    return {"told": len(told)}


def test_a_short_pause_does_nothing() -> None:
    assert run_distributed(paused, 2, "") == [{"told": 0}, {"told": 0}]
