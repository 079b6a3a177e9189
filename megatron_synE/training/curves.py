"""Curves of a run for people to look at, beside metrics.jsonl: TensorBoard and Weights & Biases."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol

from megatron_synE.config.training import LoggingConfig, WandbConfig

WANDB_ID_FILE = "wandb_run_id"
WANDB_WAIT_SECONDS = 60
"""How long a start waits for the server, and an end for the last numbers to arrive."""


class Curves(Protocol):
    """A place for numbers over steps."""

    def rewind(self, step: int) -> None:
        """Go on after `step`: what follows it is made again."""

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """Finite numbers by name, `kind/name`."""

    def text(self, name: str, step: int, text: str) -> None:
        """A text as it stands from this step on."""

    def close(self, *, failed: bool) -> None:
        """Let go, with all that was given; `failed` where an error ends the run."""


class TensorBoardCurves:
    """TensorBoard's files in a folder."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._writer: Any = None

    def rewind(self, step: int) -> None:
        """TensorBoard leaves out what was written of later steps; at step 0, of a run that begins anew, all."""
        from torch.utils.tensorboard import SummaryWriter

        self.close()
        self._writer = SummaryWriter(str(self._folder), purge_step=step + 1 if step else 0)

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """One curve for each name."""
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)

    def text(self, name: str, step: int, text: str) -> None:
        """In TensorBoard's tab for texts, in which four spaces begin a block of code."""
        self._writer.add_text(name, "\n".join(f"    {line}" for line in text.splitlines()), step)

    def close(self, *, failed: bool = False) -> None:
        """Flush and close the file."""
        if self._writer is not None:
            self._writer.close()
            self._writer = None


class WandbCurves:
    """A run of Weights & Biases, the same one after each resume: its id is kept in the folder of the records.

    What goes wrong there is told once, and the run goes on without. Its x axis is the training step: after a rollback
    the new points of a step stand beside the old ones.

    Args:
        config: where the run is shown.
        job_json: the configuration, shown beside the curves.
        folder: for the id, and for the files that wandb keeps.
        say: prints a line for the user.
    """

    def __init__(
        self, config: WandbConfig, job_json: Mapping[str, Any], folder: Path, say: Callable[[str], None]
    ) -> None:
        self._config, self._job_json, self._folder, self._say = config, job_json, folder, say
        self._run: Any = None
        self._has_failed = False

    def rewind(self, step: int) -> None:
        """Begin the run, or go on with it."""
        if self._run is None and not self._has_failed:
            self._attempt(self._begin)

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """One curve for each name."""
        if self._run is not None:
            self._attempt(lambda: self._run.log({"step": step, **values}))

    def text(self, name: str, step: int, text: str) -> None:
        """Nothing: the configuration went to the server when the run began."""

    def close(self, *, failed: bool) -> None:
        """Wait until all has arrived, a minute at most; what has not can be sent by `wandb sync`."""
        if self._run is not None:
            run, self._run = self._run, None
            self._attempt(lambda: run.finish(exit_code=int(failed)))

    def _begin(self) -> None:
        import wandb

        self._folder.mkdir(parents=True, exist_ok=True)
        self._run = wandb.init(
            project=self._config.project, entity=self._config.entity, name=self._config.name, mode=self._config.mode,
            id=self._id(), resume="allow", dir=str(self._folder), config=dict(self._job_json), allow_val_change=True,
            settings=wandb.Settings(
                init_timeout=WANDB_WAIT_SECONDS, login_timeout=WANDB_WAIT_SECONDS, finish_timeout=WANDB_WAIT_SECONDS,
                console="off", quiet=True,
            ),
        )  # fmt: skip
        where = self._run.url if self._config.mode == "online" else self._folder / "wandb"
        self._say(f"Weights & Biases: {where}")
        self._run.define_metric("step")
        self._run.define_metric("*", step_metric="step")

    def _id(self) -> str:
        file = self._folder / WANDB_ID_FILE
        if file.is_file() and (known := file.read_text(encoding="utf-8").strip()):
            return known
        aside = file.with_name(f".{file.name}.tmp")
        aside.write_text(new := secrets.token_hex(4), encoding="utf-8")
        aside.replace(file)
        return new

    def _attempt(self, action: Callable[[], object]) -> None:
        try:
            action()
        except Exception as error:  # whatever it is, the training is worth more
            self._run, self._has_failed = None, True
            self._say(f"WARNING: logging.wandb: {_first_line(error)}; the run goes on without Weights & Biases")


def _first_line(error: Exception) -> str:
    return (str(error) or type(error).__name__).strip().splitlines()[0]


def curves_of(
    config: LoggingConfig, job_json: Mapping[str, Any], directory: Path, say: Callable[[str], None]
) -> list[Curves]:
    """What the configuration asks for, beside the metrics in `directory`."""
    found: list[Curves] = [TensorBoardCurves(directory / "tensorboard")] if config.tensorboard else []
    if config.wandb.project is not None:
        found.append(WandbCurves(config.wandb, job_json, directory, say))
    return found
