"""The training loop: which samples, which learning rate, what is logged; when to evaluate, adjust, save and stop."""

from __future__ import annotations

import contextlib
import dataclasses
import math
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from megatron_synE.checkpoint import AsyncCheckpointer, collect_rng_state, save_checkpoint
from megatron_synE.progress import ProgressLine
from megatron_synE.runtime import peak_memory_bytes
from megatron_synE.runtime.watchdog import Watchdog
from megatron_synE.training.benchmarks import Benchmarks
from megatron_synE.training.evaluate import EvaluationResult, evaluate
from megatron_synE.training.failure import RunEnded
from megatron_synE.training.faults import StepDropped, StopSignal
from megatron_synE.training.forgetting import Figure, accuracy_figures, loss_figures
from megatron_synE.training.guard import Guard
from megatron_synE.training.healer import Healer
from megatron_synE.training.metrics import MetricsWriter
from megatron_synE.training.microbatches import MicroBatch, host_microbatch, sample_numbers_of_rank
from megatron_synE.training.prefetch import Prefetcher
from megatron_synE.training.run import TrainingRun
from megatron_synE.training.step import StepResult, freeze_startup_objects, train_step
from megatron_synE.training.tables import benchmarks_text, decision_text, evaluation_text

SLOW_DATA_SHARE = 0.1
"""Part of a step spent waiting for its batch from which on the progress line says so."""

ERROR_LETTERS = 1000
"""Of an error's text, that its record keeps."""


@dataclass(frozen=True)
class StepTimes:
    """Seconds of one step."""

    step_seconds: float
    """All of it, from the end of the step before; evaluation and saving are not of a step."""
    data_seconds: float
    """Of these, waiting for the batch to be read."""


class TrainingLoop:
    """Runs the steps that are left of a run."""

    def __init__(
        self, run: TrainingRun, metrics: MetricsWriter, progress: ProgressLine, stop_signal: StopSignal,
        watchdog: Watchdog, benchmarks: Benchmarks | None = None,
    ) -> None:  # fmt: skip
        self.run = run
        self.benchmarks = benchmarks
        self.metrics = metrics
        self.progress = progress
        self.stop_signal = stop_signal
        self.watchdog = watchdog
        self._async_checkpointer = AsyncCheckpointer() if run.job.checkpoint.async_save else None
        self._last_saved_step: int | None = run.first_step or None
        self._batches = Prefetcher(self._read_batch, run.job.training.prefetch_steps)
        self._step_began = math.nan
        self.healer = Healer(run, metrics, progress)
        self.guard = Guard(run, metrics, progress)

    @property
    def step(self) -> int:
        """Steps done."""
        return self.run.state.trajectory.step

    def train(self) -> None:
        """All steps that are left; saves at the end, and before leaving early.

        Raises:
            FloatingPointError: the run cannot go on with numbers that are not finite, or had too many incidents.
            RunEnded: it has forgotten more than it may, and is saved.
        """
        freeze_startup_objects()
        self._step_began = time.perf_counter()
        if self.stop_signal.anywhere(self.run.runtime.host_group):
            return
        self.stop_signal.begin_training()
        if self.step:
            self._write("resume", {"num_processes": self.run.runtime.world_size})
        if self.run.state.changed_now:
            self._write("configuration", {"changes": self.run.state.changed_now})
        try:
            stopped = self._train()
        except Exception as error:
            with contextlib.suppress(OSError):  # what is wrong may be the disk; the error itself is told by the caller
                self._write("stop", {"reason": "error", "error": str(error)[:ERROR_LETTERS]})
            raise
        finally:
            self._batches.close()
        if self.guard.stop_cause is not None:
            raise RunEnded(self.guard.stop_cause)
        if stopped and self.step < self.run.last_step:
            self.progress.note(f"stopped after step {self.step} of {self.run.last_step}; the same command goes on")

    def _train(self) -> bool:
        training, stopped, spent, steps_here = self.run.job.training, False, False, 0
        while self.step < self.run.last_step and not stopped:
            start = time.perf_counter()
            try:
                self._one_step()
            except StepDropped:
                stopped = True
                break
            steps_here += 1
            self.watchdog.beat(f"step {self.step}: done")
            if self._async_checkpointer is not None:
                self._async_checkpointer.poll()
            spent = training.exit_after_steps is not None and steps_here >= training.exit_after_steps
            seconds = time.perf_counter() - start
            stopped = self.stop_signal.anywhere(self.run.runtime.host_group, seconds) or spent
            stopped = stopped or self.guard.stop_cause is not None
        if stopped and steps_here == 0:
            return True  # nothing was done
        if self.step == self.run.last_step:
            self._evaluate_and_save()  # a run that came to its end before may be asked for more measurements
        else:
            self._save()
        if self._async_checkpointer is not None:
            self.watchdog.beat("waiting for the checkpoint that is being written", slow=True)
            self._async_checkpointer.wait()
        if steps_here:
            left = "exit_after_steps" if spent else "told"
            reason = left if self.step < self.run.last_step else "finished"
            self._write("stop", {"reason": "forgetting" if self.guard.stop_cause is not None else reason})
        return stopped

    def _one_step(self) -> None:
        """A step and what is due after it. An incident may end the run, or put it back to an earlier step."""
        try:
            self._measure_before_step()
            self._adjust()
            if self.guard.stop_cause is not None:
                raise StepDropped
            result, times, first_sample = self._compute()
            self.run.state.trajectory.advance()
            self._log_step(result, times, first_sample)
            cause, action = self.healer.examine(result)
            if action not in ("stop", "rollback"):
                if action is not None:
                    self.healer.keep(cause, action)
                self._evaluate_and_save()
                return
        except FloatingPointError as error:
            # The weights themselves, or what they give on held-out text: there is no step to leave out.
            cause, action = str(error), self.healer.remedy_of_weights()
        if action == "stop":
            self.healer.stop(cause)
        self.watchdog.beat("going back to a checkpoint", slow=True)
        with self._beside_steps():
            if self._async_checkpointer is not None:
                self._async_checkpointer.wait()
            self._batches.forget()
            self.healer.roll_back(cause)
        self._last_saved_step = self.step

    @contextlib.contextmanager
    def _beside_steps(self) -> Iterator[None]:
        """What runs inside is not counted to the time of a step."""
        start = time.perf_counter()
        try:
            yield
        finally:
            self._step_began += time.perf_counter() - start

    def _evaluate_and_save(self) -> None:
        """What is due after a step; after the last one in this order too, so that a checkpoint knows its evaluation."""
        job, is_last = self.run.job, self.step == self.run.last_step
        if job.evaluation.at_end if is_last else _is_due(self.step, job.evaluation.interval_steps):
            self._evaluate()
        if job.evaluation.benchmarks.is_due(self.step, self.run.last_step):
            with contextlib.suppress(StepDropped):
                self._benchmark()
        if is_last or _is_due(self.step, job.checkpoint.save_interval_steps):
            self._save()

    def _measure_before_step(self) -> None:
        """What the run is compared with later; and what an earlier start was told to stop in.

        Raises:
            StepDropped: the run was told to stop.
        """
        config, state = self.run.job.evaluation, self.run.state
        if config.at_start and state.first_evaluation is None:
            self._evaluate()
        is_first = config.benchmarks.at_start and state.first_benchmarks is None
        if is_first or config.benchmarks.is_due(self.step, self.run.last_step):
            self._benchmark()

    def _compute(self) -> tuple[StepResult, StepTimes, int]:
        """Forward, backward and update of the next step; also the first of its samples."""
        state = self.run.state
        self.watchdog.beat(f"step {self.step + 1}: reading")
        waiting_since = time.perf_counter()
        first_sample = int(next(state.trajectory.upcoming())[0])
        batch = self._batches.take(state.trajectory.upcoming(), may_read=self._is_settled)
        microbatches = [microbatch.to(self.run.runtime.device) for microbatch in batch]
        data_seconds = time.perf_counter() - waiting_since
        result = train_step(
            self.run.model_chunks,
            self.run.optimizer,
            microbatches,
            learning_rate=self.run.schedule(first_sample * state.stream.seq_length),
            num_components=len(state.stream.component_names),
            accept=self.healer.accept,
            before_microbatch=self._before_microbatch,
        )
        # A device still updates. Each step's reading waits for the one before, so that the times add up to the run's.
        began, self._step_began = self._step_began, time.perf_counter()
        return result, StepTimes(self._step_began - began, data_seconds), first_sample

    def _before_microbatch(self, number: int) -> None:
        self.watchdog.beat(f"step {self.step + 1}: micro-batch {number + 1}")
        # Without pipelining all processes are at the same micro-batch.
        if self.run.job.parallel.pipeline_model_parallel_size == 1:
            self.stop_signal.drop_if_told(self.run.runtime.host_group)

    def _read_batch(self, samples: np.ndarray) -> list[MicroBatch]:
        """This process's micro-batches of a step, on the host."""
        runtime, stream = self.run.runtime, self.run.state.stream
        numbers = sample_numbers_of_rank(
            samples, self.run.job.training.micro_batch_size, runtime.data_parallel_rank, runtime.data_parallel_size
        )
        size = self.run.job.parallel.context_parallel_size
        return [host_microbatch(stream.batch(row), runtime.device, size) for row in numbers]

    def _is_settled(self, first_sample: int) -> bool:
        """Whether no adjustment of the mixture is due before this sample."""
        return self.run.state.stream.next_adjustment_sample(first_sample) != first_sample

    def _adjust(self) -> None:
        """Live adjustment of the mixture, where the stream asks for one before the next step's first sample."""
        stream, sample = self.run.state.stream, self.run.state.trajectory.consumed_samples
        if stream.next_adjustment_sample(sample) != sample:
            return
        perplexity = self._evaluate().perplexity_by_component
        self._batches.forget()
        decision = stream.adjust(sample, perplexity)
        if decision is not None:
            self._write("decision", dataclasses.asdict(decision))
            self.progress.note(f"step {self.step}: {decision_text(decision)}")

    def _evaluate(self) -> EvaluationResult:
        """Held-out losses now; asked again for the same weights, the same answer."""
        state = self.run.state
        if state.last_evaluation is not None and state.last_evaluation[0] == self.step:
            return state.last_evaluation[1]
        with self._beside_steps():
            result = evaluate(
                self.run.model_chunks,
                state.stream,
                micro_batch_size=self.run.job.training.micro_batch_size,
                device=self.run.runtime.device,
                before_round=self._before_evaluation_round,
            )
        before = state.last_evaluation[1] if state.last_evaluation is not None else None
        state.last_evaluation = (self.step, result)
        state.first_evaluation = state.first_evaluation or state.last_evaluation
        if result.loss_by_component:
            shares = state.stream.shares(min(state.trajectory.consumed_samples, state.stream.num_samples - 1))
            values = {
                "mean_loss": result.mean_loss(),
                "mixture_loss": result.mixture_loss(shares),
                "loss": result.loss_by_component,
                "perplexity": result.perplexity_by_component,
            }
            self._write("evaluation", values)
            self.progress.note(f"step {self.step}: {evaluation_text(result, before)}")
        self._guard(loss_figures(result.loss_by_component, result.tokens_by_component))
        return result

    def _guard(self, figures: dict[str, Figure]) -> None:
        """What the guard does about a new measurement."""
        if self.guard.look(figures):
            self._batches.forget()  # what was read ahead is of the mixture before

    def _benchmark(self) -> None:
        """Benchmarks now, where they are not known yet.

        Raises:
            StepDropped: the run was told to stop; nothing of them is kept.
        """
        state = self.run.state
        is_known = state.last_benchmarks is not None and state.last_benchmarks[0] == self.step
        if self.benchmarks is None or is_known:
            return
        start = time.perf_counter()
        try:
            with self._beside_steps():
                measured = self.benchmarks.run(self._between_requests)
        except StepDropped:
            self.progress.note(f"step {self.step}: benchmarks given up; they are measured when the run goes on")
            raise
        first = state.first_benchmarks
        state.last_benchmarks = (self.step, measured)
        state.first_benchmarks = first or state.last_benchmarks
        self._write("benchmark", {"benchmarks": measured.scores, "seconds": time.perf_counter() - start})
        self.progress.note(f"step {self.step}: {benchmarks_text(measured, first)}")
        self._guard(accuracy_figures(measured.scores, measured.fingerprints))

    def _between_requests(self, num_done: int, num_requests: int) -> None:
        self.watchdog.beat(f"step {self.step}: benchmarks, request {num_done} of {num_requests}")
        self.progress.beside(self.step, f"benchmarks, {num_done / num_requests:.0%}")
        self.stop_signal.drop_if_told(self.run.runtime.host_group, is_long=True)

    def _before_evaluation_round(self, number: int, num_rounds: int) -> None:
        self.watchdog.beat(f"step {self.step}: evaluation, round {number + 1} of {num_rounds}")
        self.progress.beside(self.step, f"evaluating, {number / num_rounds:.0%}")

    def _log_step(self, result: StepResult, times: StepTimes, first_sample: int) -> None:
        state, runtime = self.run.state, self.run.runtime
        batch_size = state.trajectory.stretches[-1].batch_size
        rates = self.run.throughput.rates(batch_size * state.stream.seq_length, times.step_seconds)
        mfu = f"  MFU {rates['mfu']:.1%}" if "mfu" in rates else ""
        slow_data = times.data_seconds > SLOW_DATA_SHARE * times.step_seconds
        self.progress.last_step = self.run.last_step
        self.progress.step(
            self.step,
            f"loss {result.loss:.4f}  grad norm {result.grad_norm:.3f}  lr {result.learning_rate:.2e}  "
            f"{rates['tokens_per_second']:,.0f} tokens/s{mfu}  {state.position()['consumed_tokens']:,} tokens"
            + (f"  waited {times.data_seconds:.1f} s for data" if slow_data else ""),
        )
        if self.step % self.run.job.logging.interval_steps and self.step != self.run.last_step:
            return
        names = state.stream.component_names
        by_component = {n: loss for n, loss in zip(names, result.component_losses, strict=True) if math.isfinite(loss)}
        values = {
            "loss": result.loss,
            "loss_by_component": by_component,
            "grad_norm": result.grad_norm,
            "learning_rate": result.learning_rate,
            **dataclasses.asdict(times),
            **rates,
            "peak_memory_gib": peak_memory_bytes(runtime.device) / 2**30,
            "num_tokens": result.num_tokens,
            "global_batch_size": batch_size,
            "shares": state.stream.shares(first_sample),
            "updated": result.updated,
        }
        self._write("step", values)

    def _save(self) -> None:
        config = self.run.job.checkpoint
        if config.save is None or self.step == self._last_saved_step:
            return
        state = {
            "learning_rate": self.run.schedule(self.run.state.position()["consumed_tokens"]),
            "config": self.run.job_json,
            **self.run.state.to_json(),
        }
        arguments: dict[str, Any] = {
            "root": Path(config.save),
            "step": self.step,
            "architecture": self.run.architecture,
            "model_chunks": self.run.model_chunks,
            "optimizer": self.run.optimizer,
            "rng_state": collect_rng_state(),
            "state": state,
            "keep": config.keep,
            "keep_every_steps": config.keep_every_steps,
        }
        self.watchdog.beat(f"step {self.step}: saving", slow=True)
        start = time.perf_counter()
        with self._beside_steps():
            if self._async_checkpointer is not None:
                self._async_checkpointer.save(**arguments)
            else:
                save_checkpoint(**arguments)
        self._last_saved_step = self.step
        seconds = time.perf_counter() - start
        self._write("checkpoint", {"seconds": seconds})
        self.progress.note(f"step {self.step}: checkpoint in {config.save} ({seconds:.1f} s)")

    def _write(self, kind: str, values: dict[str, Any]) -> None:
        self.metrics.write(kind, self.step, {**self.run.state.position(), **values})


def _is_due(step: int, interval: int | None) -> bool:
    return interval is not None and step % interval == 0
