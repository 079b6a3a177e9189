"""Reading ahead changes when something is read, never what."""

from __future__ import annotations

import threading
import time

import numpy as np
import pytest

from megatron_synE.config.training import TrainingConfig
from megatron_synE.training.prefetch import Prefetcher
from megatron_synE.training.trajectory import Trajectory


@pytest.mark.parametrize("depth", [0, 1, 3])
def test_every_step_gets_its_own_batch(depth: int) -> None:
    trajectory = Trajectory(TrainingConfig(global_batch_size=8, rampup_batch_size=(2, 2, 40)), 200)
    prefetcher = Prefetcher(lambda samples: samples.tolist(), depth)
    seen: list[int] = []
    while trajectory.step < trajectory.last_step:
        if trajectory.step == 10:  # as after a rollback
            trajectory.pass_over([range(trajectory.consumed_samples, trajectory.consumed_samples + 8)])
        seen += prefetcher.take(trajectory.upcoming())
        trajectory.advance()
    prefetcher.close()
    passed = trajectory.passed_over[0]
    assert seen == [n for n in range(trajectory.consumed_samples) if n not in passed]


def test_batches_are_read_in_the_background_as_far_as_allowed() -> None:
    trajectory, reads = Trajectory(TrainingConfig(global_batch_size=4), 100), []
    gate = threading.Event()

    def read(samples: np.ndarray) -> int:
        reads.append(int(samples[0]))
        if len(reads) > 1:
            assert gate.wait(10)
        return int(samples[0])

    prefetcher = Prefetcher(read, 2)
    assert prefetcher.take(trajectory.upcoming(), may_read=lambda first: first != 8) == 0
    deadline = time.monotonic() + 10
    while len(reads) < 2 and time.monotonic() < deadline:
        time.sleep(0.001)
    assert reads == [0, 4], "the batch at 8 is not settled, so neither it nor a later one is read"
    gate.set()
    trajectory.advance()
    assert prefetcher.take(trajectory.upcoming(), may_read=lambda first: first != 8) == 4
    trajectory.advance()
    assert prefetcher.take(trajectory.upcoming()) == 8
    prefetcher.close()
    assert reads[:3] == [0, 4, 8] and sorted(set(reads)) == reads


def test_what_was_read_ahead_can_be_forgotten() -> None:
    content = {"value": "old"}
    prefetcher = Prefetcher(lambda samples: content["value"], 2)
    trajectory = Trajectory(TrainingConfig(global_batch_size=4), 100)
    assert prefetcher.take(trajectory.upcoming()) == "old"
    prefetcher.forget()
    content["value"] = "new"
    trajectory.advance()
    assert prefetcher.take(trajectory.upcoming()) == "new"
    prefetcher.close()


def test_an_error_comes_with_its_own_step() -> None:
    def read(samples: np.ndarray) -> int:
        if samples[0] == 8:
            raise ValueError("corpus: document 7 is damaged")
        return int(samples[0])

    trajectory, prefetcher = Trajectory(TrainingConfig(global_batch_size=4), 100), Prefetcher(read, 3)
    for expected in (0, 4):
        assert prefetcher.take(trajectory.upcoming()) == expected
        trajectory.advance()
    with pytest.raises(ValueError, match="document 7"):
        prefetcher.take(trajectory.upcoming())
    prefetcher.close()
