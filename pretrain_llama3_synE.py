"""Continual pre-training of Llama-3.

torchrun --nproc-per-node N pretrain_llama3_synE.py --config FILE [--section.field value …]
"""

from __future__ import annotations

import logging
import os
import sys
import time
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from megatron_synE.config.job import JobConfig
from megatron_synE.config.parse import parse_job

SECONDS_FOR_THE_FIRST_PROCESS = 5.0


def main(arguments: Sequence[str]) -> int:
    """Train; returns the exit status. A mistake of the user's is told once, without a traceback."""
    try:
        train(parse_job(arguments))
    except (ValueError, FloatingPointError, OSError) as error:
        rank = int(os.environ.get("RANK", "0"))
        if rank:
            # torchrun ends all processes with the first that fails. What they all found, the first process tells.
            time.sleep(SECONDS_FOR_THE_FIRST_PROCESS)
        where = f" (process {rank})" if rank else ""
        print(f"pretrain_llama3_synE{where}: {error}", file=sys.stderr, flush=True)
        return 1
    return 0


def train(job: JobConfig) -> None:
    """Check the job, bring up the processes, build, train.

    Raises:
        ValueError: the job cannot run; everything found, one line each.
    """
    quiet_megatron()
    from megatron_synE.runtime import initialize, shut_down
    from megatron_synE.runtime.process_groups import world_size_from_environment
    from megatron_synE.training.config_changes import as_json
    from megatron_synE.training.loop import TrainingLoop
    from megatron_synE.training.metrics import METRICS_FILE, MetricsWriter, ProgressLine
    from megatron_synE.training.setup import build_run, check_job

    architecture = check_job(job, world_size_from_environment())
    runtime = initialize(job.parallel, job.training.seed)
    def say(line: str) -> None:
        if runtime.is_main:
            print(line, file=sys.stderr, flush=True)

    run = build_run(job, as_json(job), architecture, runtime, say)
    directory = job.logging.directory or job.checkpoint.save
    metrics = MetricsWriter(
        Path(directory) if directory and runtime.is_main else None,
        resumed_step=run.first_step,
        tensorboard=job.logging.tensorboard,
        keeps=run.state.stands_for,
    )
    if metrics.num_damaged:
        say(f"WARNING: {directory}: {metrics.num_damaged} unreadable lines moved to {METRICS_FILE}.damaged")
    progress = ProgressLine(first_step=run.first_step, last_step=run.last_step, show=runtime.is_main)
    for line in summary(run):
        progress.note(line)
    try:
        TrainingLoop(run, metrics, progress).train()
    finally:
        progress.close()
        metrics.close()
    shut_down()


def summary(run: Any) -> list[str]:
    """What is about to be trained, on what."""
    from megatron_synE.runtime import device_name
    from megatron_synE.training.config_changes import describe

    parallel, runtime = run.job.parallel, run.runtime
    stream, tokens_per_step = run.state.stream, run.job.training.global_batch_size * run.state.stream.seq_length
    start = f"resuming after step {run.first_step}" if run.first_step else "starting"
    ramp = f", ramped up over {run.job.training.ramp_samples:,} samples" if run.job.training.ramp_samples else ""
    return [
        f"model {run.architecture.num_parameters() / 1e6:,.1f} M parameters, {run.job.precision.dtype}; "
        f"{runtime.world_size} processes on {device_name(runtime.device)}: "
        f"TP {parallel.tensor_model_parallel_size} PP {parallel.pipeline_model_parallel_size} "
        f"CP {parallel.context_parallel_size} DP {runtime.data_parallel_size}",
        f"data  {len(stream.component_names)} components, {stream.num_samples:,} samples of "
        f"{stream.seq_length:,} tokens; {start}, {run.last_step} steps of {tokens_per_step:,} tokens{ramp}",
        f"layers {run.job.model.transformer_impl}{kernels_in_use(run)}",
        *describe(run.state.changed_now),
    ]


def kernels_in_use(run: Any) -> str:
    """Which implementation the operations of the fused layers run, and why."""
    from megatron_synE.kernels.selection import OPS, choice

    if run.job.model.transformer_impl != "fused":
        return ""
    operations: dict[str, list[str]] = {}
    for name in OPS:
        chosen = choice(name, run.runtime.device.type)
        operations.setdefault(f"{chosen.implementation} ({chosen.reason})", []).append(name)
    return "".join(f"; {how}: {', '.join(names)}" for how, names in operations.items())


QUIET_LOGGERS = (
    "megatron.core.transformer.transformer_layer",  # does not know that our MLP takes no further arguments
    "megatron.core.dist_checkpointing.serialization",  # calls the folder that a save is prepared in an old one
)


def quiet_megatron() -> None:
    """megatron-core warns of every optional package that is absent; tools/doctor.py tells what is used instead."""
    warnings.filterwarnings("ignore", module=r"megatron\.core")
    warnings.filterwarnings("ignore", message=r".*torch\.distributed.*deprecated", category=FutureWarning)
    for name in QUIET_LOGGERS:
        logging.getLogger(name).setLevel(logging.ERROR)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
