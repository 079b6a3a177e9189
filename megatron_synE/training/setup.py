"""A job and the process groups → everything the loop works with, started from a checkpoint or a Hugging Face model."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from megatron_synE.checkpoint import (
    DamagedCheckpoint,
    init_from_hf,
    load_checkpoint,
    resume_notes,
)
from megatron_synE.config.job import JobConfig
from megatron_synE.config.model import LlamaArchitecture
from megatron_synE.model import build_model_chunks
from megatron_synE.model.tp_comm_overlap import allocate_tp_comm_buffers
from megatron_synE.runtime import Runtime, device_name
from megatron_synE.training.checks import budget_problems
from megatron_synE.training.optimizer import build_optimizer, wrap_data_parallel
from megatron_synE.training.run import TrainingRun, candidates_of_all_ranks, read_run_state
from megatron_synE.training.run_state import RunState, start_run_state
from megatron_synE.training.schedule import LearningRateSchedule, make_schedule
from megatron_synE.training.throughput import make_throughput


def build_run(
    job: JobConfig,
    job_json: dict[str, Any],
    architecture: LlamaArchitecture,
    runtime: Runtime,
    say: Callable[[str], None] = lambda line: None,
) -> TrainingRun:
    """Build stream, model and optimizer; resume, or start from other weights.

    A checkpoint that turns out to be damaged is told, and the newest one that is not is taken.

    Raises:
        ValueError: no checkpoint is undamaged, or one or a corpus does not fit the job.
    """
    if runtime.is_main and job.checkpoint.save is not None:
        for note in resume_notes(job.checkpoint.save):
            say(f"WARNING: {note}")
    damaged = []
    for directory in candidates_of_all_ranks(job.checkpoint.save):
        try:
            return _build_run(job, job_json, architecture, runtime, directory)
        except DamagedCheckpoint as error:
            damaged.append(str(error))
            say(f"WARNING: {error}")
            say("WARNING: going on with the checkpoint before it")
    if damaged:
        raise ValueError(
            f"checkpoint.save: every checkpoint in {job.checkpoint.save} is damaged:\n" + "\n".join(damaged) +
            "\nrestore one of them, or move the folder away to start afresh"
        )  # fmt: skip
    return _build_run(job, job_json, architecture, runtime, None)


def _build_run(
    job: JobConfig,
    job_json: dict[str, Any],
    architecture: LlamaArchitecture,
    runtime: Runtime,
    resume_from: Path | None,
) -> TrainingRun:
    if resume_from is None:
        run_state = start_run_state(job, vocab_size=architecture.vocab_size, cache_builder=runtime.is_main)
    else:
        run_state = read_run_state(job, job_json, resume_from, architecture, runtime)
    schedule = _schedule(job, run_state)
    if job.parallel.tp_comm_overlap:
        tokens = job.training.micro_batch_size * run_state.stream.seq_length // job.parallel.context_parallel_size
        allocate_tp_comm_buffers(architecture, job.parallel, job.precision, tokens_per_microbatch=tokens)
    bare_chunks = build_model_chunks(architecture, job.model, job.parallel, job.precision, device=runtime.device)
    if resume_from is None and job.checkpoint.init_from_hf is not None:
        init_from_hf(bare_chunks, job.checkpoint.init_from_hf)
    model_chunks = wrap_data_parallel(bare_chunks, job.parallel, job.precision)
    optimizer = build_optimizer(model_chunks, job.optimizer, job.parallel, job.precision)
    run = TrainingRun(
        job=job,
        job_json=job_json,
        runtime=runtime,
        architecture=architecture,
        model_chunks=model_chunks,
        optimizer=optimizer,
        schedule=schedule,
        throughput=make_throughput(
            architecture,
            seq_length=run_state.stream.seq_length,
            world_size=runtime.world_size,
            peak_tflops=job.logging.peak_tflops,
            device_name=device_name(runtime.device),
        ),
        first_step=run_state.trajectory.step,
        state=run_state,
    )
    if resume_from is not None:
        run.restore(resume_from)
    elif job.checkpoint.load is not None:
        load_checkpoint(
            job.checkpoint.load, architecture=architecture, model_chunks=model_chunks, optimizer=optimizer,
            weights_only=True,
        )  # fmt: skip
    return run


def _schedule(job: JobConfig, state: RunState) -> LearningRateSchedule:
    """The schedule spans the whole token budget, also when training.train_steps stops earlier."""
    num_samples = state.stream.num_samples
    if problems := budget_problems(job, num_samples, state.trajectory):
        raise ValueError("\n".join(problems))
    return make_schedule(
        job.schedule,
        job.optimizer.lr,
        total_tokens=num_samples * state.stream.seq_length,
        tokens_per_step=job.training.global_batch_size * state.stream.seq_length,
    )
