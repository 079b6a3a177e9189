"""The forgetting guard: compares each measurement with the run's first; tells, stops the run or moves share back."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

from megatron_synE.config.evaluation import EvaluationConfig
from megatron_synE.data.state import Decision
from megatron_synE.data.strategies import RestoreShare
from megatron_synE.progress import ProgressLine
from megatron_synE.training.forgetting import Excess, Figure, ForgettingMemory, Told, bounds_of, stop_text
from megatron_synE.training.metrics import MetricsWriter
from megatron_synE.training.run import TrainingRun
from megatron_synE.training.tables import decision_text


class Guard:
    """Judges a run's measurements by its `evaluation.guard`. All processes see the same numbers, and decide alike."""

    def __init__(self, run: TrainingRun, metrics: MetricsWriter, progress: ProgressLine) -> None:
        self.run, self.metrics, self.progress = run, metrics, progress
        self.stop_cause: str | None = None
        """Why the run has to save and end; None where it may go on."""
        self._config, self._cooldown_steps = run.job.evaluation.guard, cooldown_steps(run.job.evaluation)
        self._bounds = bounds_of(self._config, run.job.data)
        self._strategy = RestoreShare(self._config.restore)

    def look(self, figures: Mapping[str, Figure]) -> bool:
        """Judge a measurement of the weights as they are; called once for each. Whether the mixture was moved.

        Args: figures: the same on every process, to the last bit.
        """
        begun = self._memory.begin(self._step, figures)
        self._tell_baselines([what for what in begun if what in self._bounds])
        excesses = self._memory.excesses(figures, self._bounds)
        for what in self._memory.recovered(figures, excesses):
            self.progress.note(f"step {self._step}: {what} {figures[what].value:.4f} is within its bound again")
        decision, obstacles = self._restore(excesses) if self._config.reaction == "restore_share" else (None, {})
        for excess in excesses:
            if self._config.reaction == "stop":
                self._tell(excess, "stop")
            elif decision is not None and any(was_raised(decision, source) for source in excess.bound.sources):
                self._tell(excess, "restore_share")
            elif self._memory.is_news(excess):
                self._tell(excess, "warn", obstacles.get(excess.what, ""))
        if excesses and self._config.reaction == "stop":
            self.stop_cause = stop_text(self._step, excesses)
        if decision is not None:
            values = dataclasses.asdict(decision)
            self.metrics.write("decision", self._step, {**self.run.state.position(), **values})
            self.progress.note(f"step {self._step}: {decision_text(decision)}")
        return decision is not None

    @property
    def _step(self) -> int:
        return self.run.state.trajectory.step

    @property
    def _memory(self) -> ForgettingMemory:
        return self.run.state.forgetting  # a rollback replaces the state

    def _restore(self, excesses: Sequence[Excess]) -> tuple[Decision | None, dict[str, str]]:
        """Move share back to the sources of these figures; also what kept it from that, by figure."""
        obstacles: dict[str, str] = {}
        sources: dict[str, None] = {}
        for excess in excesses:
            reasons = {source: self._obstacle(source) for source in excess.bound.sources}
            sources |= {source: None for source, reason in reasons.items() if not reason}
            obstacles[excess.what] = "; ".join(reason for reason in reasons.values() if reason)
        if not sources:
            return None, obstacles
        state, spared = self.run.state, [source for excess in excesses for source in excess.bound.sources]
        inputs = {
            "baseline": {excess.what: excess.baseline.value for excess in excesses},
            "value": {excess.what: excess.value for excess in excesses},
            "bound": {excess.what: excess.bound.limit for excess in excesses},
        }
        try:
            decision = state.stream.restore_share(
                state.trajectory.consumed_samples, list(sources), self._strategy, spared=spared, inputs=inputs
            )
        except ValueError as error:
            return None, {what: reason or str(error) for what, reason in obstacles.items()}
        for source in sources:
            if was_raised(decision, source):
                self._memory.restored.setdefault(source, []).append(self._step)
        return decision, obstacles

    def _obstacle(self, source: str) -> str:
        """Why no share goes back to a source now; empty where it may."""
        steps = self._memory.restored.get(source, [])
        if len(steps) >= self._config.restore.max_restorations:
            return f"share was moved back to {source} {len(steps)} times already (max_restorations)"
        if steps and self._step < steps[-1] + self._cooldown_steps:
            return f"share was moved back to {source} after step {steps[-1]}, and has to take effect first"
        return ""

    def _tell(self, excess: Excess, reaction: str, reason: str = "") -> None:
        """Record it, and say it."""
        self._memory.told[excess.what] = Told(self._step, excess.value)
        values = {
            "what": excess.what, "baseline": excess.baseline.value, "baseline_step": excess.baseline.step,
            "value": excess.value, "bound": excess.bound.limit, "reaction": reaction,
        }  # fmt: skip
        if reason:
            values["reason"] = reason
        self.metrics.write("forgetting", self._step, {**self.run.state.position(), **values})
        done = {"warn": reason, "stop": "the run saves and ends", "restore_share": "share is moved back"}[reaction]
        self.progress.note(f"FORGETTING at step {self._step}: {excess.describe()}" + (f"; {done}" if done else ""))

    def _tell_baselines(self, begun: Sequence[str]) -> None:
        """At step 0 nothing else is expected; later it has to be known."""
        if self._step and begun:
            listed = ", ".join(f"{what} {self._memory.baselines[what].value:.4f}" for what in begun)
            self.progress.note(
                f"step {self._step}: evaluation.guard compares with this measurement, not with step 0, where there was "
                f"none of the same: {listed}"
            )


def cooldown_steps(config: EvaluationConfig) -> int:
    """Steps after a restoration in which the same source gets none."""
    own = config.guard.restore.cooldown_steps
    return own if own is not None else 2 * (config.interval_steps or config.benchmarks.interval_steps or 1)


def was_raised(decision: Decision, source: str) -> bool:
    """Whether a decision on sources gives this one more."""
    return decision.shares_after[source] > decision.shares_before[source]
