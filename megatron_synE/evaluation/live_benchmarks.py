"""Benchmarks of a model while it trains: implements `training.benchmarks.Benchmarks`."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from megatron_synE.checkpoint.collective import on_rank_zero
from megatron_synE.config.job import JobConfig
from megatron_synE.config.model import LlamaArchitecture
from megatron_synE.evaluation.engine import LogLikelihood
from megatron_synE.evaluation.llama.batching import BatchLimits
from megatron_synE.evaluation.llama.scoring import score
from megatron_synE.evaluation.multiple_choice import is_right
from megatron_synE.evaluation.rendered import RenderedBenchmarks, RenderedTask, read_rendered
from megatron_synE.runtime import Runtime
from megatron_synE.training.benchmarks import BenchmarkScores
from megatron_synE.training.rendering import render
from megatron_synE.training.run import TrainingRun

REQUESTS_FILE = "benchmark_requests"
"""In the folder of the run's records: made at a start, and kept for the next one."""


def render_for_all(
    job: JobConfig, architecture: LlamaArchitecture, runtime: Runtime, folder: Path | None, say: Callable[[str], None]
) -> RenderedBenchmarks | None:
    """The requests of a job's benchmarks, on every process; None where it asks for none. Called by all of them.

    Args:
        folder: of the run's records; None keeps nothing.
        say: prints a line for the user.

    Raises:
        ValueError: tasks, data or tokenizer will not do; all that is wrong, one line each.
    """
    if not job.evaluation.benchmarks.tasks:
        return None
    shared: list[Any] = [None]

    def make() -> None:
        with tempfile.TemporaryDirectory() as temporary:
            file = (folder or Path(temporary)) / REQUESTS_FILE
            rendering = render(job, architecture, file)
            if rendering.problems:
                raise ValueError("\n".join(rendering.problems))
            for note in rendering.notes:
                say(f"benchmarks: {note}")
            shared[0] = read_rendered(file)

    on_rank_zero(make)
    torch.distributed.broadcast_object_list(shared, src=0, group=runtime.host_group)
    found = shared[0]
    assert isinstance(found, RenderedBenchmarks)
    return found


class LiveBenchmarks:
    """Scores the run's own model. Requests that are not those of its last measurement are told as a change of the run.

    Args:
        rendered: the same on every process.
    """

    def __init__(self, rendered: RenderedBenchmarks, run: TrainingRun) -> None:
        self._rendered, self._run = rendered, run
        self._limits = BatchLimits(tokens=run.job.evaluation.benchmarks.tokens_per_batch)
        run.state.compare_benchmarks(self.fingerprints)

    @property
    def fingerprints(self) -> dict[str, str]:
        """Task → hash of all that is asked."""
        return {task.name: task.fingerprint for task in self._rendered.tasks}

    def run(self, between: Callable[[int, int], None]) -> BenchmarkScores:
        """See `training.benchmarks.Benchmarks`."""
        scores, total = {}, self._rendered.num_requests
        for task in self._rendered.tasks:
            numbers = self._rendered.requests_of(self._rendered.items_of(task.name))

            def before_round(number: int, num_rounds: int, numbers: range = numbers) -> None:
                between(numbers.start + len(numbers) * number // num_rounds, total)

            answers = score(
                self._run.model_chunks, self._rendered.requests(numbers), device=self._run.runtime.device,
                limits=self._limits, host_group=self._run.runtime.host_group, before_round=before_round,
            )  # fmt: skip
            scores[task.name] = task_scores(self._rendered, task, answers)
        return BenchmarkScores(scores, self.fingerprints)


def task_scores(
    rendered: RenderedBenchmarks, task: RenderedTask, answers: Sequence[LogLikelihood]
) -> dict[str, float]:
    """Metric → mean over the items of a task; and `num_items`.

    Args:
        answers: to the task's requests, in their order.
    """
    right = dict.fromkeys(task.metrics, 0)
    numbers = rendered.items_of(task.name)
    first = rendered.requests_of(numbers).start
    for number in numbers:
        item, own = rendered.item(number), rendered.requests_of(range(number, number + 1))
        values = [answer.value for answer in answers[own.start - first : own.stop - first]]
        for metric in task.metrics:
            right[metric] += is_right(metric, values, item.num_characters, item.num_bytes, item.gold)
    return {**{metric: count / len(numbers) for metric, count in right.items()}, "num_items": len(numbers)}
