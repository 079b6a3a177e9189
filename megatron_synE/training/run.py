"""What one run consists of, and how it is put back to one of its checkpoints."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from megatron.core.distributed import DistributedDataParallel
from megatron.core.optimizer import ChainedOptimizer

from megatron_synE.checkpoint import load_checkpoint, read_state, restore_rng_state, resume_candidates
from megatron_synE.checkpoint.collective import on_rank_zero
from megatron_synE.config.job import JobConfig
from megatron_synE.config.model import LlamaArchitecture
from megatron_synE.runtime import Runtime
from megatron_synE.training.run_state import RunState, resume_run_state
from megatron_synE.training.schedule import LearningRateSchedule
from megatron_synE.training.throughput import Throughput


@dataclass
class TrainingRun:
    """Everything the loop works with; built by `setup.build_run`."""

    job: JobConfig
    job_json: dict[str, Any]
    runtime: Runtime
    architecture: LlamaArchitecture
    model_chunks: Sequence[DistributedDataParallel]
    optimizer: ChainedOptimizer
    schedule: LearningRateSchedule
    throughput: Throughput
    first_step: int
    """Steps done when this process started."""
    state: RunState
    """Replaced by an earlier one when the run is rolled back."""

    @property
    def last_step(self) -> int:
        """Steps of the whole run."""
        whole = self.state.trajectory.last_step
        return min(self.job.training.train_steps or whole, whole)

    def restore(self, directory: Path) -> None:
        """Fill model, optimizer and generators from a checkpoint. Called by all ranks.

        Raises:
            DamagedCheckpoint: its content is not what was written.
            ValueError: it is of another model.
        """
        loaded = load_checkpoint(
            directory, architecture=self.architecture, model_chunks=self.model_chunks, optimizer=self.optimizer
        )
        if loaded.rng_state is not None:
            restore_rng_state(loaded.rng_state)

    def go_back(self, directory: Path) -> None:
        """Put the run back to its checkpoint in `directory`; incidents and changes of the configuration stay known.

        Raises:
            DamagedCheckpoint: its content is not what was written.
        """
        earlier = read_run_state(self.job, self.job_json, directory, self.architecture, self.runtime)
        self.restore(directory)
        earlier.incidents, earlier.config_changes = self.state.incidents, self.state.config_changes
        self.state = earlier


def read_run_state(
    job: JobConfig, job_json: dict[str, Any], directory: Path, architecture: LlamaArchitecture, runtime: Runtime
) -> RunState:
    """The trainer's part of a checkpoint.

    Raises:
        DamagedCheckpoint: its state cannot be.
        ValueError: it is an imported model's, or does not fit the job or its corpora.
    """
    state = read_state(directory)
    if "stream" not in state:
        raise ValueError(
            f"checkpoint.save: {directory} is an imported model, not a run; name it as checkpoint.load, "
            "and another folder as checkpoint.save"
        )
    return resume_run_state(
        job,
        job_json,
        state,
        where=str(directory / "state.json"),
        vocab_size=architecture.vocab_size,
        cache_builder=runtime.is_main,
    )


def candidates_of_all_ranks(root: str | None) -> list[Path]:
    """The checkpoints in `root` that a run may go on from, best first, as the main process sees them.

    Raises:
        ValueError: something was saved there, but no checkpoint is complete.
    """
    if root is None:
        return []
    seen: list[Any] = [None]

    def look() -> None:
        seen[0] = [str(path) for path in resume_candidates(root)]

    on_rank_zero(look)
    torch.distributed.broadcast_object_list(seen, src=0)
    return [Path(path) for path in seen[0]]
