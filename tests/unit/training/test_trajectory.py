"""Which samples the steps read: each once, whatever happens to the batch size."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from megatron_synE.config.training import TrainingConfig
from megatron_synE.training.trajectory import Trajectory


def resumed(trajectory: Trajectory, training: TrainingConfig, num_samples: int | None = None) -> Trajectory:
    """Through JSON, with another configuration."""
    content = {
        "step": trajectory.step, "consumed_samples": trajectory.consumed_samples, "trajectory": trajectory.to_json()
    }  # fmt: skip
    return Trajectory.resume(training, num_samples or trajectory.num_samples, json.loads(json.dumps(content)))


def read(trajectory: Trajectory, num_steps: int) -> list[int]:
    samples: list[int] = []
    for _ in range(num_steps):
        samples += next(trajectory.upcoming()).tolist()
        trajectory.advance()
    return samples


@pytest.mark.parametrize("size", [4, 16])
def test_a_batch_size_changed_at_a_resume_skips_and_repeats_nothing(size: int) -> None:
    """Defect 1: 8 steps at 8, then 16 (samples 64 to 127 were never read) or 4 (32 to 63 were read twice)."""
    first = Trajectory(TrainingConfig(global_batch_size=8), 256)
    samples = read(first, 8)
    second = resumed(first, TrainingConfig(global_batch_size=size))
    assert second.last_step == 8 + (256 - 64) // size
    samples += read(second, second.last_step - second.step)
    assert samples == list(range(256))
    assert second.samples_of_steps(7, 9) == [range(56, 64 + size)]
    assert second.samples_of_steps(0, 10**6) == [range(256)]


@given(st.data())
def test_any_changes_read_every_sample_once(data: st.DataObject) -> None:
    num_samples = data.draw(st.integers(20, 400))
    trajectory, samples, by_step = Trajectory(TrainingConfig(), num_samples), [], []
    for _ in range(data.draw(st.integers(1, 5))):
        start, increment, parts = (data.draw(st.integers(1, 5)) for _ in range(3))
        ramp = (start, increment, data.draw(st.integers(parts, 300)))
        training = TrainingConfig(
            global_batch_size=start + parts * increment,
            rampup_batch_size=ramp if data.draw(st.booleans()) else None,
        )
        assert training.problems() == []
        trajectory = resumed(trajectory, training)
        planned = trajectory.last_step
        if data.draw(st.booleans()) and planned > trajectory.step:
            first = data.draw(st.integers(trajectory.consumed_samples, num_samples))
            trajectory.pass_over([range(first, first + data.draw(st.integers(1, 20)))])
            assert trajectory.last_step <= planned
        for _ in range(data.draw(st.integers(0, trajectory.last_step - trajectory.step))):
            by_step.append(read(trajectory, 1))
            samples += by_step[-1]
    passed = {sample for part in trajectory.passed_over for sample in part}
    expected = [sample for sample in range(trajectory.consumed_samples) if sample not in passed]
    assert samples == expected
    first = data.draw(st.integers(0, len(by_step)))
    end = data.draw(st.integers(first, len(by_step)))
    told = [sample for part in trajectory.samples_of_steps(first, end) for sample in part]
    assert told == [sample for step in by_step[first:end] for sample in step]


@given(st.data())
def test_what_comes_next_is_what_the_steps_then_read(data: st.DataObject) -> None:
    ramp = (2, 2, data.draw(st.integers(1, 100)))
    trajectory = Trajectory(TrainingConfig(global_batch_size=10, rampup_batch_size=ramp), 200)
    trajectory.pass_over([range(30, 35)])
    read(trajectory, data.draw(st.integers(0, 5)))
    ahead = [batch.tolist() for batch in trajectory.upcoming()]
    assert len(ahead) == trajectory.last_step - trajectory.step
    assert [read(trajectory, 1) for _ in ahead] == ahead


@given(st.integers(1, 8), st.integers(1, 8), st.integers(1, 12), st.integers(1, 500), st.integers(0, 600))
def test_the_ramp_is_megatrons(start: int, increment: int, parts: int, samples: int, consumed: int) -> None:
    from megatron.core.num_microbatches_calculator import RampupBatchsizeNumMicroBatchesCalculator

    size = start + parts * increment
    if (consumed * parts) % samples == 0 and consumed <= samples and samples % parts:
        return  # Megatron divides in floating point: at such a border it may be a rounding error off
    reference = RampupBatchsizeNumMicroBatchesCalculator(size, 1, 1, False, 1, start, increment, samples)
    reference.update(consumed, consistency_check=False)
    ours = TrainingConfig(global_batch_size=size, rampup_batch_size=(start, increment, samples))
    assert ours.global_batch_size_at(consumed) == reference.current_global_batch_size
    assert ours.global_batch_size_at(consumed) in ours.global_batch_sizes()


def test_a_ramp_that_does_not_reach_the_batch_size_is_refused() -> None:
    assert "is not reached" in TrainingConfig(global_batch_size=16, rampup_batch_size=(4, 5, 100)).problems()[0]
    assert "positive" in TrainingConfig(global_batch_size=16, rampup_batch_size=(0, 4, 100)).problems()[0]
    assert "rampup_batch_size: 6" in TrainingConfig(
        micro_batch_size=2, global_batch_size=8, rampup_batch_size=(4, 2, 100)
    ).problems_with_layout(2)[0]


def test_a_checkpoint_of_one_batch_size_is_read_as_before() -> None:
    state = {"step": 8, "consumed_samples": 64, "config": {"training": {"global_batch_size": 8}}}
    trajectory = Trajectory.resume(TrainingConfig(global_batch_size=16), 256, state)
    assert np.array_equal(next(trajectory.upcoming()), np.arange(64, 80))
    assert trajectory.samples_of_steps(6, 9) == [range(48, 80)]


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("consumed_samples", 63), ("consumed_samples", None), ("step", 9), ("step", "x"), ("trajectory", 3),
        ("trajectory", {"stretches": [[0, 0, 8]]}), ("trajectory", {"stretches": [[1, 0, 8]], "passed_over": []}),
        ("trajectory", {"stretches": [[0, 0, -8]], "passed_over": []}),
        ("trajectory", {"stretches": [[0, 0, 8]], "passed_over": [[5, 5]]}),
    ],
)  # fmt: skip
def test_a_position_that_does_not_follow_is_refused(field: str, value: object) -> None:
    state = {"step": 8, "consumed_samples": 64, "trajectory": {"stretches": [[0, 0, 8]], "passed_over": []}}
    Trajectory.resume(TrainingConfig(), 256, state)
    with pytest.raises(ValueError, match=r"state\.json"):
        Trajectory.resume(TrainingConfig(), 256, {**state, field: value})
