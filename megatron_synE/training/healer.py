"""What is done about an incident: recorded, the step left out, the run rolled back, or ended."""

from __future__ import annotations

import dataclasses
import math
from typing import NoReturn

import torch

from megatron_synE.checkpoint import DamagedCheckpoint
from megatron_synE.data.ledger import documents_of
from megatron_synE.progress import ProgressLine
from megatron_synE.training.healing import Action, Incident
from megatron_synE.training.metrics import MetricsWriter
from megatron_synE.training.run import TrainingRun, candidates_of_all_ranks
from megatron_synE.training.step import StepResult

ADVICE = (
    "Checkpoints are untouched. Lower optimizer.lr, look at the documents in the record of this incident "
    "(metrics.jsonl), or let the run heal itself: training.fail_on_nan false, healing.nonfinite rollback"
)


class Healer:
    """Judges the steps of a run by its `healing` configuration."""

    def __init__(self, run: TrainingRun, metrics: MetricsWriter, progress: ProgressLine) -> None:
        self.run, self.metrics, self.progress = run, metrics, progress
        self._config, self._fail_on_nan = run.job.healing, run.job.training.fail_on_nan
        self._spike: str | None = None
        self._spoilt_earlier = False

    def accept(self, result: StepResult) -> bool:
        """Whether a finite step may update the weights: not where it is a spike that is not only to be recorded."""
        if self._config.spike in ("ignore", "record"):
            return True  # what is only recorded is found out in `examine`, beside the update
        self._spike = self.run.state.spikes.spike(self._series(result))
        # One process's word: if another decided otherwise by a last bit, each would wait for the other for ever.
        refused = torch.tensor([int(self._spike is not None)])
        torch.distributed.broadcast(refused, src=0, group=self.run.runtime.host_group)
        return not refused.item()

    def examine(self, result: StepResult) -> tuple[str, Action | None]:
        """What was wrong with a step that is done, and what is to be done about it: ("", None) where all was well.

        Raises:
            FloatingPointError: the weights are not finite.
        """
        if not result.finite:
            cause = f"loss {result.loss}, gradient norm {result.grad_norm}: not finite"
            if self._fail_on_nan:
                return cause, "stop"
            self._check_weights()
            return cause, self._config.nonfinite
        if not result.updated:
            return self._spike or "spike", "rollback" if self._config.spike == "rollback" else "skip"
        if self._config.spike == "record":
            self._spike = self.run.state.spikes.spike(self._series(result))
        self.run.state.spikes.accept(self._series(result))
        self.run.state.incidents.step_counts()
        return (self._spike, "record") if self._spike is not None else ("", None)

    def remedy_of_weights(self) -> Action:
        """What is to be done about weights that are not finite: leaving a step out would not help."""
        return "stop" if self._fail_on_nan or self._config.nonfinite == "skip" else "rollback"

    def keep(self, cause: str, action: Action) -> None:
        """Record an incident of the step just done.

        Raises:
            FloatingPointError: there were too many.
        """
        self._add(self._incident(cause, action))

    def stop(self, cause: str) -> NoReturn:
        """Record an incident and end the run.

        Raises:
            FloatingPointError: always.
        """
        incident = self._incident(cause, "stop")
        self._add(incident)
        raise FloatingPointError(f"step {incident.step}: {cause}. {ADVICE}")

    def roll_back(self, cause: str) -> None:
        """Put the run back to its newest checkpoint, and pass over the samples that are blamed.

        Raises:
            FloatingPointError: there is none to go back to, or there were too many incidents.
        """
        # Where weights were bad before the step, it is the one before that spoilt them.
        incident = self._incident(cause, "rollback", self._config.pass_over_steps + int(self._spoilt_earlier))
        self._spoilt_earlier = False
        root = self.run.job.checkpoint.save
        if not self._go_back(root):
            raise FloatingPointError(
                f"step {incident.step}: {cause}; checkpoint.save: {root} has no checkpoint to go back to. {ADVICE}"
            )
        state = self.run.state
        reached = state.trajectory.consumed_samples
        ahead = [range(max(first, reached), end) for first, end in incident.samples if end > reached]
        state.trajectory.pass_over(ahead)
        self.metrics.rewind(state.trajectory.step, state.stands_for)
        self._add(dataclasses.replace(incident, resumed_from_step=state.trajectory.step))

    def _go_back(self, root: str | None) -> bool:
        for directory in candidates_of_all_ranks(root):
            try:
                self.run.go_back(directory)
                return True
            except DamagedCheckpoint as error:
                self.progress.note(f"WARNING: {error}")
        return False

    def _incident(self, cause: str, action: Action, num_steps: int = 1) -> Incident:
        """An incident of the step just done, which blames the samples of the last `num_steps`."""
        state = self.run.state
        step = state.trajectory.step
        samples = state.trajectory.samples_of_steps(max(0, step - num_steps), step)
        return Incident(
            step=step,
            cause=cause,
            action=action,
            samples=[[part.start, part.stop] for part in samples],
            documents=documents_of(state.stream, samples),
        )

    def _add(self, incident: Incident) -> None:
        state = self.run.state
        state.incidents.add(incident)
        self.metrics.write("incident", incident.step, {**state.position(), **dataclasses.asdict(incident)})
        self.progress.note(f"INCIDENT at step {incident.step}: {incident.describe()}")
        exceeded = state.incidents.exceeded()
        if exceeded is not None:
            raise FloatingPointError(f"step {incident.step}: {incident.cause}; {exceeded}. {ADVICE}")

    def _check_weights(self) -> None:
        parameters = [parameter for chunk in self.run.model_chunks for parameter in chunk.parameters()]
        total = torch.stack([parameter.detach().sum(dtype=torch.float64) for parameter in parameters]).sum().reshape(1)
        torch.distributed.all_reduce(total)
        self._spoilt_earlier = not math.isfinite(total.item())
        if self._spoilt_earlier:
            raise FloatingPointError("the weights are not finite: an earlier step spoilt them")

    def _series(self, result: StepResult) -> dict[str, float]:
        """The values that are judged, by name."""
        names = self.run.state.stream.component_names
        by_component = {f"loss of {n}": v for n, v in zip(names, result.component_losses, strict=True)}
        return {"loss": result.loss, "gradient norm": result.grad_norm, **by_component}
