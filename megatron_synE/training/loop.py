"""The training loop: which samples, which learning rate, what is logged; when to evaluate, adjust, save and stop."""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from megatron.core.distributed import DistributedDataParallel
from megatron.core.optimizer import ChainedOptimizer

from megatron_synE.checkpoint import AsyncCheckpointer, collect_rng_state, save_checkpoint
from megatron_synE.config.job import JobConfig
from megatron_synE.config.model import LlamaArchitecture
from megatron_synE.data.stream import DataStream
from megatron_synE.runtime import Runtime, peak_memory_bytes, synchronize
from megatron_synE.training.evaluate import EvaluationResult, evaluate
from megatron_synE.training.faults import StopSignal
from megatron_synE.training.metrics import MetricsWriter, ProgressLine
from megatron_synE.training.microbatches import MicroBatch, sample_numbers_of_rank, to_microbatch
from megatron_synE.training.schedule import LearningRateSchedule
from megatron_synE.training.step import StepResult, freeze_startup_objects, train_step
from megatron_synE.training.throughput import Throughput


@dataclass(frozen=True)
class TrainingRun:
    """Everything the loop works with; built by `setup.build_run`."""

    job: JobConfig
    job_json: dict[str, Any]
    runtime: Runtime
    architecture: LlamaArchitecture
    model_chunks: Sequence[DistributedDataParallel]
    optimizer: ChainedOptimizer
    schedule: LearningRateSchedule
    stream: DataStream
    throughput: Throughput
    first_step: int
    last_step: int

    @property
    def tokens_per_step(self) -> int:
        """Tokens of one global batch."""
        return self.job.training.global_batch_size * self.stream.seq_length


class TrainingLoop:
    """Runs the steps `first_step` … `last_step` of a run."""

    def __init__(self, run: TrainingRun, metrics: MetricsWriter, progress: ProgressLine) -> None:
        self.run = run
        self.metrics = metrics
        self.progress = progress
        self.stop_signal = StopSignal()
        self._async_checkpointer = AsyncCheckpointer() if run.job.checkpoint.async_save else None
        self._last_saved_step: int | None = run.first_step or None
        self._last_evaluation: tuple[int, EvaluationResult] | None = None

    def train(self) -> None:
        """All steps that are left; saves at the end, and before leaving early.

        Raises:
            FloatingPointError: the loss or the gradient is not finite and training.fail_on_nan is set.
        """
        self.stop_signal.install()
        training, checkpoint = self.run.job.training, self.run.job.checkpoint
        step, stopped = self.run.first_step, False
        freeze_startup_objects()
        while step < self.run.last_step and not stopped:
            self._adjust(step)
            result, seconds = self._step(step)
            step += 1
            self._log_step(step, result, seconds)
            if self._async_checkpointer is not None:
                self._async_checkpointer.poll()
            if self._due(step, self.run.job.evaluation.interval_steps) and step < self.run.last_step:
                self._evaluate(step)
            if self._due(step, checkpoint.save_interval_steps):
                self._save(step)
            spent = training.exit_after_steps is not None and step >= self.run.first_step + training.exit_after_steps
            stopped = self.stop_signal.anywhere(self.run.runtime.device) or spent
        if step == self.run.last_step and self.run.job.evaluation.at_end:
            self._evaluate(step)
        self._save(step)
        if self._async_checkpointer is not None:
            self._async_checkpointer.wait()
        if stopped and step < self.run.last_step:
            self.progress.note(f"stopped after step {step} of {self.run.last_step}; the same command goes on")

    def microbatches(self, step: int) -> list[MicroBatch]:
        """This process's micro-batches of the step that follows `step` steps."""
        training, runtime = self.run.job.training, self.run.runtime
        samples = sample_numbers_of_rank(
            step * training.global_batch_size,
            training.global_batch_size,
            training.micro_batch_size,
            runtime.data_parallel_rank,
            runtime.data_parallel_size,
        )
        size = self.run.job.parallel.context_parallel_size
        return [to_microbatch(self.run.stream.batch(numbers), runtime.device, size) for numbers in samples]

    def _step(self, step: int) -> tuple[StepResult, float]:
        start = time.perf_counter()
        result = train_step(
            self.run.model_chunks,
            self.run.optimizer,
            self.microbatches(step),
            learning_rate=self.run.schedule(step * self.run.tokens_per_step),
            num_components=len(self.run.stream.component_names),
        )
        synchronize(self.run.runtime.device)
        if not result.updated and self.run.job.training.fail_on_nan:
            raise FloatingPointError(
                f"step {step + 1}: loss {result.loss}, gradient norm {result.grad_norm}: not finite. Lower "
                "optimizer.lr, look at what this step read (tools/inspect_stream.py), or skip such steps with "
                "training.fail_on_nan false"
            )
        return result, time.perf_counter() - start

    def _adjust(self, step: int) -> None:
        """Live adjustment of the mixture, where the stream asks for one before this step's first sample."""
        sample = step * self.run.job.training.global_batch_size
        if self.run.stream.next_adjustment_sample(sample) != sample:
            return
        decision = self.run.stream.adjust(sample, self._evaluate(step).perplexity_by_component)
        if decision is not None:
            self.metrics.write("decision", step, dataclasses.asdict(decision))
            moved = (
                f"{name} {before:.3f}→{decision.shares_after[name]:.3f}"
                for name, before in decision.shares_before.items()
                if before != decision.shares_after[name]
            )
            self.progress.note(f"step {step}: topic shares  {'  '.join(moved)}")

    def _evaluate(self, step: int) -> EvaluationResult:
        """Held-out losses after `step` steps; asked again for the same weights, the same answer."""
        if self._last_evaluation is not None and self._last_evaluation[0] == step:
            return self._last_evaluation[1]
        result = evaluate(
            self.run.model_chunks,
            self.run.stream,
            micro_batch_size=self.run.job.training.micro_batch_size,
            device=self.run.runtime.device,
        )
        if result.loss_by_component:
            values = {"loss": result.loss_by_component, "perplexity": result.perplexity_by_component}
            self.metrics.write("evaluation", step, values)
            losses = "  ".join(f"{name} {loss:.4f}" for name, loss in result.loss_by_component.items())
            self.progress.note(f"step {step}: held-out loss  {losses}")
        self._last_evaluation = (step, result)
        return result

    def _log_step(self, step: int, result: StepResult, seconds: float) -> None:
        consumed_tokens = step * self.run.tokens_per_step
        rates = self.run.throughput.rates(seconds)
        memory_gib = peak_memory_bytes(self.run.runtime.device) / 2**30
        mfu = f"  MFU {rates['mfu']:.1%}" if "mfu" in rates else ""
        self.progress.step(
            step,
            f"loss {result.loss:.4f}  grad norm {result.grad_norm:.3f}  lr {result.learning_rate:.2e}  "
            f"{rates['tokens_per_second']:,.0f} tokens/s{mfu}  {consumed_tokens:,} tokens",
        )
        if step % self.run.job.logging.interval_steps and step != self.run.last_step:
            return
        names = self.run.stream.component_names
        by_component = {n: loss for n, loss in zip(names, result.component_losses, strict=True) if math.isfinite(loss)}
        values = {
            "loss": result.loss,
            "loss_by_component": by_component,
            "grad_norm": result.grad_norm,
            "learning_rate": result.learning_rate,
            "step_seconds": seconds,
            **rates,
            "peak_memory_gib": memory_gib,
            "num_tokens": result.num_tokens,
            "consumed_tokens": consumed_tokens,
            "consumed_samples": step * self.run.job.training.global_batch_size,
            "shares": self.run.stream.shares(min((step - 1) * self.run.job.training.global_batch_size,
                                                 self.run.stream.num_samples - 1)),
            "updated": result.updated,
        }  # fmt: skip
        self.metrics.write("step", step, values)

    def _save(self, step: int) -> None:
        config = self.run.job.checkpoint
        if config.save is None or step == self._last_saved_step:
            return
        arguments: dict[str, Any] = {
            "root": Path(config.save),
            "step": step,
            "architecture": self.run.architecture,
            "model_chunks": self.run.model_chunks,
            "optimizer": self.run.optimizer,
            "rng_state": collect_rng_state(),
            "state": self._state(step),
            "keep": config.keep,
        }
        start = time.perf_counter()
        if self._async_checkpointer is not None:
            self._async_checkpointer.save(**arguments)
        else:
            save_checkpoint(**arguments)
        self._last_saved_step = step
        seconds = time.perf_counter() - start
        self.metrics.write("checkpoint", step, {"seconds": seconds})
        self.progress.note(f"step {step}: checkpoint in {config.save} ({seconds:.1f} s)")

    def _state(self, step: int) -> dict[str, Any]:
        consumed_samples = step * self.run.job.training.global_batch_size
        return {
            "consumed_samples": consumed_samples,
            "consumed_tokens": consumed_samples * self.run.stream.seq_length,
            "learning_rate": self.run.schedule(step * self.run.tokens_per_step),
            "stream": self.run.stream.state_dict(consumed_samples),
            "config": self.run.job_json,
        }

    @staticmethod
    def _due(step: int, interval: int | None) -> bool:
        return interval is not None and step % interval == 0
