"""A job and the process groups → everything the loop works with, started from a checkpoint or a Hugging Face model."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from megatron_synE.checkpoint import (
    DamagedCheckpoint,
    architecture_from_hf,
    init_from_hf,
    load_checkpoint,
    quick_check,
    resume_candidates,
    resume_notes,
)
from megatron_synE.checkpoint.layout import check_place, read_architecture
from megatron_synE.config.job import JobConfig
from megatron_synE.config.model import LlamaArchitecture
from megatron_synE.corpus.indexed import IndexedCorpus
from megatron_synE.data.preflight import preflight as data_preflight
from megatron_synE.model import build_model_chunks
from megatron_synE.model.tp_comm_overlap import allocate_tp_comm_buffers
from megatron_synE.runtime import Runtime, device_name
from megatron_synE.training.machine import machine_problems
from megatron_synE.training.optimizer import build_optimizer, wrap_data_parallel
from megatron_synE.training.run import TrainingRun, candidates_of_all_ranks, read_run_state
from megatron_synE.training.run_state import RunState, start_run_state
from megatron_synE.training.schedule import LearningRateSchedule, make_schedule
from megatron_synE.training.throughput import make_throughput

MAX_UNUSED_ROWS = 1024
"""Models may have rows that their tokenizer never names; more than this many means another tokenizer."""


def check_job(job: JobConfig, world_size: int) -> LlamaArchitecture:
    """Look at every field and every file that the job names, before any process group or file is made.

    Raises:
        ValueError: all that is wrong, one line each: the field or file, and the fix.
    """
    base, stream_state, problems = None, None, []
    try:
        resumed = _resumed_from(job)
        base = _base_architecture(job, resumed[0] if resumed is not None else None)
        stream_state = resumed[1].get("stream") if resumed is not None else None
    except ValueError as error:
        problems.append(str(error))
    if not problems or job.model.preset is not None:
        problems += job.problems(world_size, base)
    problems += machine_problems(job)
    if not job.data.problems():
        problems += data_preflight(job.data, state=stream_state)
        problems += _vocabulary_problems(job, base)
    problems = problems or _place_problems(job, base)
    if problems:
        raise ValueError("\n".join(problems))
    return job.model.architecture(base)


def _place_problems(job: JobConfig, base: LlamaArchitecture | None) -> list[str]:
    """Whether the folder of the checkpoints can be written to and has room for one: weights, main values, moments."""
    if job.checkpoint.save is None:
        return []
    weight_bytes = 2 if job.precision.dtype == "bf16" else 4
    try:
        check_place(job.checkpoint.save, job.model.architecture(base).num_parameters() * (weight_bytes + 3 * 4))
    except ValueError as error:
        return [str(error)]
    return []


def _resumed_from(job: JobConfig) -> tuple[Path, dict[str, Any]] | None:
    """The checkpoint that the run goes on from as far as is known before its tensors are read, and its state.json.

    Raises:
        ValueError: something was saved in checkpoint.save, but none of it can be gone on from.
    """
    problem: DamagedCheckpoint | None = None
    for directory in resume_candidates(job.checkpoint.save) if job.checkpoint.save is not None else ():
        try:
            return directory, quick_check(directory).state
        except DamagedCheckpoint as error:
            problem = problem or error
    if problem is not None:
        raise problem
    return None


def _base_architecture(job: JobConfig, resumed_from: Path | None) -> LlamaArchitecture | None:
    """The sizes of the model that the run goes on with or starts from; a preset stands above them."""
    checkpoint, found = job.checkpoint, None
    if resumed_from is not None:
        found = _read_sizes("checkpoint.save", read_architecture, str(resumed_from))
    elif checkpoint.init_from_hf is not None:
        found = _read_sizes("checkpoint.init_from_hf", architecture_from_hf, checkpoint.init_from_hf)
    elif checkpoint.load is not None:
        found = _read_sizes("checkpoint.load", read_architecture, checkpoint.load)
    return found if job.model.preset is None else None


def _read_sizes(field: str, read: Callable[[str], LlamaArchitecture], folder: str) -> LlamaArchitecture:
    try:
        return read(folder)
    except ValueError as error:
        raise ValueError(f"{field}: {error}") from None


def _vocabulary_problems(job: JobConfig, base: LlamaArchitecture | None) -> list[str]:
    """Corpora that were tokenised with another vocabulary than the model's, as far as their sidecars tell."""
    try:
        vocab_size = job.model.architecture(base).vocab_size
    except ValueError:
        return []  # reported with the model's fields
    found = []
    for name, source in job.data.sources.items():
        try:
            tokenizer = IndexedCorpus(source.prefix).metadata.get("tokenizer") or {}
        except ValueError:
            continue  # reported by the data's own check
        size = tokenizer.get("vocab_size")
        if size is not None and not size <= vocab_size < size + MAX_UNUSED_ROWS:
            found.append(
                f"data.sources.{name}.prefix: {source.prefix} was tokenised with a vocabulary of {size} "
                f"({tokenizer.get('name')}), the model has {vocab_size}; tokenise it with the model's tokenizer, "
                "or choose the model that fits"
            )
    return found


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
    num_samples, budget_steps = state.stream.num_samples, state.trajectory.last_step
    if budget_steps == 0:
        raise ValueError(
            f"data.stages: {num_samples} samples are less than one global batch of "
            f"{job.training.global_batch_size_at(0)}; raise the budget, or lower training.global_batch_size"
        )
    if (job.training.train_steps or 0) > budget_steps:
        raise ValueError(
            f"training.train_steps: {job.training.train_steps} is more than the {budget_steps} steps of the budget of "
            "data.stages; raise the budget, or drop train_steps"
        )
    return make_schedule(
        job.schedule,
        job.optimizer.lr,
        total_tokens=num_samples * state.stream.seq_length,
        tokens_per_step=job.training.global_batch_size * state.stream.seq_length,
    )
