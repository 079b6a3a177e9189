"""Where a run is kept, and what it starts from."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class CheckpointConfig:
    """Checkpoints of a run. The same command starts the run and resumes it."""

    save: str | None = None
    """Folder of this run's checkpoints; a run whose folder holds one resumes from its `latest`. None saves nothing."""
    save_interval_steps: int | None = None
    """Steps between two checkpoints; none saves at the end only."""
    keep: int | None = None
    """Keep this many newest checkpoints; none keeps all."""
    keep_every_steps: int | None = None
    """Besides the newest, keep every checkpoint whose step this divides."""
    load: str | None = None
    """Folder of another run, or a checkpoint in it, to start from when `save` holds none: weights only."""
    init_from_hf: str | None = None
    """Folder of a Hugging Face Llama to start from when `save` holds no checkpoint."""
    async_save: bool = False
    """Write in the background while training goes on."""

    def problems(self) -> list[str]:
        """Contradictions among these fields."""
        found = []
        for name in ("save_interval_steps", "keep", "keep_every_steps"):
            value = getattr(self, name)
            if value is not None and value < 1:
                found.append(f"checkpoint.{name}: {value} is not positive; use 1 or more, or null")
        if self.save is None and self.save_interval_steps is not None:
            found.append("checkpoint.save_interval_steps: given without checkpoint.save; name a folder")
        if self.keep is None and self.keep_every_steps is not None:
            found.append("checkpoint.keep_every_steps: given without checkpoint.keep, so that all are kept; give both")
        if self.load is not None and self.init_from_hf is not None:
            found.append("checkpoint.load: checkpoint.init_from_hf is given too; keep one of them")
        return found
