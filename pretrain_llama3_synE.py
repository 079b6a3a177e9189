"""Continual pre-training of Llama-3.

torchrun --nproc-per-node N pretrain_llama3_synE.py --config FILE [--section.field value …]
python pretrain_llama3_synE.py --dry_run [--world_size N] --config FILE [--section.field value …]

SIGINT, SIGTERM, SIGUSR1 and SIGHUP, to any of the processes or to torchrun, end the run after its step, saved.

Exit status of each process: 0 when the run came to its end or stopped as told, and where a dry run found that it would
start; 1 after an error, which one process tells, and where it was told to stop while it waited for others to start;
75 where the run stood still (parallel.hang_timeout_minutes). torchrun ends with 0 or 1, and with 1 also where it was
itself told to stop.
"""

from __future__ import annotations

import contextlib
import os
import sys
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from megatron_synE.command_line import outlive_readers, quiet_megatron
from megatron_synE.training import failure
from megatron_synE.training.faults import StopSignal

if TYPE_CHECKING:
    from megatron_synE.config.job import JobConfig
    from megatron_synE.runtime.peers import Peers
    from megatron_synE.runtime.run_lock import RunLock
    from megatron_synE.runtime.watchdog import Watchdog


def main(arguments: Sequence[str]) -> int:
    """Train; returns the exit status. An error is told once, a mistake of the user's without a traceback."""
    launcher = os.getppid() if "TORCHELASTIC_RUN_ID" in os.environ else None
    stop_signal = StopSignal(launcher)
    stop_signal.install()  # before the imports that take seconds
    training = Training(stop_signal, launcher)
    try:
        training.run(arguments)
    except Exception as error:
        failure.report(error, training.peers, stop_signal.wait)
        return 1
    return 0


class Training:
    """One start of a run, from its command line to its last checkpoint."""

    def __init__(self, stop_signal: StopSignal, launcher: int | None) -> None:
        self.stop_signal = stop_signal
        self.launcher = launcher
        self.peers: Peers | None = None

    def run(self, arguments: Sequence[str]) -> None:
        """Check the job, bring up the processes, build, train.

        Raises:
            ValueError: the job cannot run; everything found, one line each.
        """
        quiet_megatron()
        from megatron_synE.config.launch import Launch
        from megatron_synE.config.parse import parse_job

        launch = Launch()
        job = parse_job(arguments, launch)
        from megatron_synE.runtime.process_groups import set_cuda_environment
        from megatron_synE.runtime.transformer_engine import hide_unusable_transformer_engine

        set_cuda_environment(job.parallel)  # before the imports of megatron-core, which ask for a GPU
        unusable = hide_unusable_transformer_engine()
        if launch.dry_run:
            from megatron_synE.training.dry_run import dry_run

            self.stop_signal.let_go()
            dry_run(job, launch)
            return
        from megatron_synE.checkpoint.collective import on_rank_zero
        from megatron_synE.runtime import initialize, shut_down
        from megatron_synE.runtime.peers import Peers
        from megatron_synE.runtime.process_groups import world_size_from_environment
        from megatron_synE.training.checks import check_job

        architecture = check_job(job, world_size_from_environment())
        with all_come_within(job.parallel.hang_timeout_minutes):
            runtime = initialize(job.parallel, job.training.seed)
            self.peers = Peers.meet()
        if unusable is not None and runtime.is_main:
            print(f"WARNING: {unusable}; this run does without it", file=sys.stderr, flush=True)
        self.stop_signal.meet(self.peers)
        watchdog = self._watchdog(job, self.peers)
        watchdog.start()
        if not self.stop_signal.anywhere(runtime.host_group):
            lock = self._lock(job)
            on_rank_zero(lock.acquire)
            try:
                self._train(job, arguments, architecture, runtime, watchdog)
            finally:
                lock.release()
        self.stop_signal.finish()
        watchdog.stop()
        shut_down()

    def _train(
        self, job: JobConfig, arguments: Sequence[str], architecture: Any, runtime: Any, watchdog: Watchdog
    ) -> None:
        import yaml

        from megatron_synE.evaluation.live_benchmarks import LiveBenchmarks, render_for_all
        from megatron_synE.progress import ProgressLine
        from megatron_synE.training.config_changes import as_json
        from megatron_synE.training.curves import curves_of
        from megatron_synE.training.loop import TrainingLoop
        from megatron_synE.training.metrics import METRICS_FILE, MetricsWriter
        from megatron_synE.training.setup import build_run
        from megatron_synE.training.start_record import start_record

        def say(line: str) -> None:
            if runtime.is_main:
                print(line, file=sys.stderr, flush=True)

        watchdog.beat("rendering benchmarks", slow=True)
        rendered = render_for_all(job, architecture, runtime, folder_of_records(job), say)
        watchdog.beat("building the run and reading its checkpoint", slow=True)
        job_json = as_json(job)
        run = build_run(job, job_json, architecture, runtime, say)
        benchmarks = None if rendered is None else LiveBenchmarks(rendered, run)
        directory = folder_of_records(job) if runtime.is_main else None
        curves = [] if directory is None else curves_of(job.logging, job_json, directory, say)

        def stands(record: dict[str, Any]) -> bool:
            repeated = record["kind"] == "start" or record.get("reason") == "error"  # what this start does anew
            return run.state.stands_for(record) and not (repeated and record["step"] == run.first_step)

        metrics = MetricsWriter(directory, resumed_step=run.first_step, curves=curves, keeps=stands)
        metrics.text("configuration", run.first_step, yaml.safe_dump(job_json, allow_unicode=True, sort_keys=False))
        if metrics.num_damaged:
            say(f"WARNING: {directory}: {metrics.num_damaged} unreadable lines moved to {METRICS_FILE}.damaged")
        if runtime.is_main:
            metrics.write("start", run.first_step, {**run.state.position(), **start_record(run, arguments)})
        progress = ProgressLine(first_step=run.first_step, last_step=run.last_step, show=runtime.is_main)
        for line in summary(run):
            progress.note(line)
        failed = True
        try:
            TrainingLoop(run, metrics, progress, self.stop_signal, watchdog, benchmarks).train()
            failed = False
        finally:
            progress.close()
            metrics.close(failed=failed)

    def _lock(self, job: JobConfig) -> RunLock:
        from megatron_synE.runtime.run_lock import RunLock

        folders = {"checkpoint.save": job.checkpoint.save, "logging.directory": job.logging.directory}
        return RunLock(
            {field: folder for field, folder in folders.items() if folder is not None},
            is_ending=lambda: self.stop_signal.told,
            on_lost=end_at_once,
        )


    def _watchdog(self, job: JobConfig, peers: Peers) -> Watchdog:
        from megatron_synE.runtime.watchdog import Watchdog

        return Watchdog(
            peers,
            hang_timeout_seconds=job.parallel.hang_timeout_minutes * 60,
            slow_timeout_seconds=job.parallel.timeout_minutes * 60 * 0.9,
            folder=folder_of_records(job),
            launcher=self.launcher,
            on_launcher_gone=self.stop_signal.tell_launcher_is_gone,
            tell=lambda text: failure.tell(text, kind="Watchdog"),
        )


@contextlib.contextmanager
def all_come_within(minutes: float) -> Iterator[None]:
    """End this process where the others do not come: before they have met, no watchdog can tell who is missing."""
    from megatron_synE.runtime.watchdog import STATUS

    def give_up() -> None:
        failure.tell(
            f"start-up: not all processes have come within {minutes:g} minutes (parallel.hang_timeout_minutes): one of "
            "them stands still, or its node is gone",
            kind="Watchdog",
        )
        os._exit(STATUS)

    timer = threading.Timer(minutes * 60, give_up)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def folder_of_records(job: JobConfig) -> Path | None:
    """Where metrics and the like are written."""
    directory = job.logging.directory or job.checkpoint.save
    return Path(directory) if directory is not None else None


def end_at_once(reason: str) -> None:
    """End this process from any thread, before it writes anything more."""
    failure.tell(reason, kind="RunLock")
    os._exit(1)


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
        *stream.describe_merges(),
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


def command() -> NoReturn:
    """The command line, also as `syne-pretrain`."""
    outlive_readers()
    failure.leave(main(sys.argv[1:]))


if __name__ == "__main__":
    command()
