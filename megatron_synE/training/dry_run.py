"""Whether a run would start, and what it would do: found out by one process, which writes nothing."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

from megatron_synE.config.job import JobConfig
from megatron_synE.config.launch import Launch
from megatron_synE.data.ledger import ledger
from megatron_synE.data.ledger_table import ledger_table, stage_ranges
from megatron_synE.runtime.run_lock import check_free
from megatron_synE.training.checks import Findings, checkpoint_bytes, examine_job
from megatron_synE.training.config_changes import as_json, config_changes, describe


def dry_run(job: JobConfig, launch: Launch, say: Callable[[str], None] = print) -> None:
    """Tell the plan of the run that this job would start, or go on with.

    Raises:
        ValueError: it would not start; all that was found, one line each.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise ValueError("--dry_run: one process is enough; start it without torchrun, and give --world_size")
    world_size = launch.world_size or max(1, job.parallel.model_parallel_size)
    found = examine_job(job, world_size, keep_indices=False, render_benchmarks=True)
    folders = {"checkpoint.save": job.checkpoint.save, "logging.directory": job.logging.directory}
    found.problems += check_free({field: folder for field, folder in folders.items() if folder is not None})
    for line in [*_model_lines(job, found), *_layout_lines(job, launch, world_size), *_start_lines(job, found)]:
        say(line)
    for line in _plan_lines(job, found):
        say(line)
    for note in found.notes + (found.lacking if launch.elsewhere else []):
        say(f"note    {note}")
    problems = found.problems + ([] if launch.elsewhere else found.lacking)
    if problems:
        raise ValueError("\n".join(["the run would not start:", *problems]))
    say("the run would start")


def _model_lines(job: JobConfig, found: Findings) -> list[str]:
    if found.architecture is None:
        return []
    return [f"model   {found.architecture.num_parameters():,} parameters, {job.precision.dtype}"]


def _layout_lines(job: JobConfig, launch: Launch, world_size: int) -> list[str]:
    parallel = job.parallel
    told = "" if launch.world_size else " (one replica of the model; --world_size tells another number)"
    sizes = f"TP {parallel.tensor_model_parallel_size} PP {parallel.pipeline_model_parallel_size}"
    replicas = world_size // max(1, parallel.model_parallel_size)
    return [f"layout  {world_size} processes: {sizes} CP {parallel.context_parallel_size} DP {replicas}{told}"]


def _start_lines(job: JobConfig, found: Findings) -> list[str]:
    """What the run starts from, and what is changed since then."""
    checkpoint, resumed = job.checkpoint, found.resumed_from
    if resumed is not None:
        changes = config_changes(resumed.state["config"], as_json(job))
        return [f"start   resumes after step {resumed.state['step']}, from {resumed.directory}", *describe(changes)]
    if checkpoint.init_from_hf is not None:
        return [f"start   from the weights of {checkpoint.init_from_hf}"]
    if checkpoint.load is not None:
        return [f"start   from the weights of {checkpoint.load}"]
    return ["start   from random weights"]


def _plan_lines(job: JobConfig, found: Findings) -> list[str]:
    """What will be read, how many steps that takes, and what is saved."""
    stream, trajectory, lines = found.stream, found.trajectory, []
    if stream is not None:
        for title, first, end in stage_ranges(stream):
            lines += [ledger_table(title, ledger(stream, first, end), first, end, stream.seq_length), ""]
        lines += [*stream.describe_merges(), *stream.describe_moves()]
    if stream is None or trajectory is None:
        return lines
    last_step = min(job.training.train_steps or trajectory.last_step, trajectory.last_step)
    tokens_per_step = job.training.global_batch_size * stream.seq_length
    ramp = f", ramped up over {job.training.ramp_samples:,} samples" if job.training.ramp_samples else ""
    lines.append(f"steps   {trajectory.step:,} of {last_step:,} are done; {tokens_per_step:,} tokens each{ramp}")
    if job.checkpoint.save is not None and found.architecture is not None:
        lines.append(_checkpoint_line(job, checkpoint_bytes(job, found.architecture), trajectory.step, last_step))
    return lines


def _checkpoint_line(job: JobConfig, one_bytes: int, first_step: int, last_step: int) -> str:
    """How many checkpoints there will be at a time, and what they take."""
    assert job.checkpoint.save is not None
    interval, keep = job.checkpoint.save_interval_steps or last_step, job.checkpoint.keep
    num_saved = last_step // interval - first_step // interval + bool(last_step % interval)
    # One more is written before the oldest goes; what keep_every_steps keeps besides comes to these.
    most = num_saved if keep is None else min(num_saved, keep + 1)
    if keep is not None and job.checkpoint.keep_every_steps:
        most = min(num_saved, most + (last_step - first_step) // job.checkpoint.keep_every_steps)
    root = Path(job.checkpoint.save).absolute()
    free_bytes = shutil.disk_usage(next(path for path in (root, *root.parents) if path.is_dir())).free
    room = "" if free_bytes >= most * one_bytes else ": NOT enough for all of them"
    return (
        f"saves   {num_saved:,} checkpoints of {one_bytes / 1e9:,.2f} GB, {most:,} at a time; "
        f"{free_bytes / 1e9:,.2f} GB are free in {job.checkpoint.save}{room}"
    )
