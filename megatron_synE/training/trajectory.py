"""Which samples each step reads: the batch size over the run, and the way that was gone.

The position in the stream is the number of samples consumed, never step × batch size: the batch size may ramp up or be
changed at a resume, and a rollback passes over the samples that it blames.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from megatron_synE.config.training import TrainingConfig


@dataclass(frozen=True)
class Stretch:
    """Steps of equal batch size, up to the next stretch."""

    step: int
    """Steps done when it begins."""
    sample: int
    """Samples consumed when it begins."""
    batch_size: int
    """Samples of each of its steps."""


class Trajectory:
    """Where a run stands, how it came there, and which samples come next.

    Args:
        training: its batch size and ramp hold from here on.
        num_samples: of the whole stream; what is left of it and is less than a batch is not read.
        step, consumed_samples: the position; that of a checkpoint, or 0.
        stretches: the steps done so far.
        passed_over: ranges of samples that no step reads, ascending.
    """

    def __init__(
        self,
        training: TrainingConfig,
        num_samples: int,
        *,
        step: int = 0,
        consumed_samples: int = 0,
        stretches: Sequence[Stretch] = (),
        passed_over: Sequence[range] = (),
    ) -> None:
        self._training, self.num_samples = training, num_samples
        self.step, self.consumed_samples = step, consumed_samples
        self.stretches, self.passed_over = list(stretches), list(passed_over)

    @classmethod
    def resume(
        cls, training: TrainingConfig, num_samples: int, state: Mapping[str, Any], where: str = "state.json"
    ) -> Trajectory:
        """The trajectory of a checkpoint's state, which lies in the file `where`.

        Raises:
            ValueError: its fields are damaged or contradict each other; names the file and the field.
        """
        try:
            step, consumed_samples = int(state["step"]), int(state["consumed_samples"])
            content = state.get("trajectory")
            if content is None:  # written when all batches of a run had one size
                size = state["config"]["training"]["global_batch_size"]
                content = {"stretches": [[0, 0, size]] if step else [], "passed_over": []}
            stretches = [Stretch(int(step), int(sample), int(size)) for step, sample, size in content["stretches"]]
            passed_over = [range(int(first), int(end)) for first, end in content["passed_over"]]
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(f"{where}: trajectory: damaged ({error!r}); use another checkpoint") from None
        found = cls(
            training, num_samples, step=step, consumed_samples=consumed_samples, stretches=stretches,
            passed_over=passed_over,
        )  # fmt: skip
        found._check(where)
        return found

    def to_json(self) -> dict[str, Any]:
        """What `resume` needs beside `step` and `consumed_samples`."""
        return {
            "stretches": [[stretch.step, stretch.sample, stretch.batch_size] for stretch in self.stretches],
            "passed_over": [[passed.start, passed.stop] for passed in self.passed_over],
        }

    @property
    def last_step(self) -> int:
        """Steps of the whole run, if it goes on to the end of the stream."""
        step, sample = self.step, self.consumed_samples
        steady_from = max([self._training.ramp_samples + 1, *(passed.stop for passed in self.passed_over)])
        while (end := self._end_of_batch(sample)) <= self.num_samples:
            if sample >= steady_from:
                return step + (self.num_samples - sample) // self._training.global_batch_size
            step, sample = step + 1, end
        return step

    def upcoming(self) -> Iterator[np.ndarray]:
        """The samples int64[global batch] of the next step, the one after it, and so on to the end of the stream."""
        sample = self.consumed_samples
        while (end := self._end_of_batch(sample)) <= self.num_samples:
            yield np.concatenate([np.arange(r.start, r.stop) for r in self._read_from(sample, self._size(sample))])
            sample = end

    def advance(self) -> None:
        """One step is done."""
        size = self._size(self.consumed_samples)
        if not self.stretches or self.stretches[-1].batch_size != size:
            self.stretches.append(Stretch(self.step, self.consumed_samples, size))
        self.consumed_samples = self._end_of_batch(self.consumed_samples)
        self.step += 1

    def samples_of_steps(self, first_step: int, end_step: int) -> list[range]:
        """What the steps [first_step, end_step) read: done ones as it was, later ones as it is planned."""
        ahead = Trajectory(
            self._training, self.num_samples, step=self.step, consumed_samples=self.consumed_samples,
            stretches=self.stretches, passed_over=self.passed_over,
        )  # fmt: skip
        end_step = min(end_step, ahead.last_step)
        while ahead.step < end_step:
            ahead.advance()
        found: list[range] = []
        for stretch, end in ahead._stretches_with_ends():
            first, stop = max(first_step, stretch.step), min(end_step, end)
            if first < stop:
                start = ahead._after(stretch.sample, (first - stretch.step) * stretch.batch_size)
                found += ahead._read_from(start, (stop - first) * stretch.batch_size)
        return _joined(found)

    def pass_over(self, samples: Sequence[range]) -> None:
        """Never read these samples, all of which lie ahead."""
        assert all(passed.start >= self.consumed_samples for passed in samples), (samples, self.consumed_samples)
        self.passed_over = _joined(sorted([*self.passed_over, *samples], key=lambda passed: passed.start))

    def _size(self, sample: int) -> int:
        return self._training.global_batch_size_at(sample)

    def _end_of_batch(self, sample: int) -> int:
        return self._after(sample, self._size(sample))

    def _after(self, sample: int, count: int) -> int:
        """The position after reading `count` samples from `sample` on."""
        read = self._read_from(sample, count)
        return read[-1].stop if read else sample

    def _read_from(self, sample: int, count: int) -> list[range]:
        """The first `count` samples from `sample` on that are not passed over."""
        found = []
        for passed in [*self.passed_over, None]:
            if passed is not None and passed.stop <= sample:
                continue
            end = sample + count if passed is None else min(sample + count, passed.start)
            if end > sample:
                found.append(range(sample, end))
                count -= end - sample
            if passed is None or not count:
                break
            sample = passed.stop
        return found

    def _stretches_with_ends(self) -> list[tuple[Stretch, int]]:
        """Each stretch, and the steps done at its end."""
        later = [stretch.step for stretch in self.stretches[1:]]
        return list(zip(self.stretches, [*later, self.step], strict=False))

    def _check(self, where: str) -> None:
        """A position must follow from the stretches; the ledger and the schedule rely on it."""
        step, sample = 0, 0
        wrong = bool(self.stretches) != bool(self.step) or any(not 0 <= p.start < p.stop for p in self.passed_over)
        for stretch, end in self._stretches_with_ends():
            wrong = wrong or stretch.batch_size < 1 or (stretch.step, stretch.sample) != (step, sample) or end <= step
            sample = self._after(sample, (end - step) * stretch.batch_size)
            step = end
        if wrong or sample != self.consumed_samples:
            raise ValueError(
                f"{where}: consumed_samples: {self.consumed_samples} after {self.step} steps does not follow from "
                "its trajectory; the checkpoint is damaged, use another one"
            )


def _joined(ranges: Sequence[range]) -> list[range]:
    """Ascending ranges with neighbours and overlaps made one."""
    found: list[range] = []
    for each in ranges:
        if found and each.start <= found[-1].stop:
            found[-1] = range(found[-1].start, max(found[-1].stop, each.stop))
        else:
            found.append(each)
    return found
