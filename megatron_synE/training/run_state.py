"""What a run is at a moment, beside weights and generators: the trainer's own part of a checkpoint's state.json."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from megatron_synE.checkpoint import DamagedCheckpoint
from megatron_synE.config.job import JobConfig
from megatron_synE.data.stream import DataStream
from megatron_synE.training.benchmarks import BenchmarkScores, scores_from_json, scores_to_json
from megatron_synE.training.config_changes import config_changes
from megatron_synE.training.evaluate import EvaluationResult
from megatron_synE.training.forgetting import ForgettingMemory, accuracy_figures, loss_figures
from megatron_synE.training.healing import IncidentLog, SpikeDetector
from megatron_synE.training.trajectory import Trajectory


@dataclass
class RunState:
    """Everything that a resumed run has to know to go on as if it had not been interrupted."""

    stream: DataStream
    trajectory: Trajectory
    spikes: SpikeDetector
    incidents: IncidentLog
    last_evaluation: tuple[int, EvaluationResult] | None = None
    """Step of the newest evaluation, and what it found: asked again for the same weights, the same answer."""
    first_evaluation: tuple[int, EvaluationResult] | None = None
    """The first that is known: of step 0 where `evaluation.at_start` is on. What was learnt or forgotten is told by it.
    """
    first_benchmarks: tuple[int, BenchmarkScores] | None = None
    """Step of the run's first measured benchmarks, and what they were."""
    last_benchmarks: tuple[int, BenchmarkScores] | None = None
    """The newest ones."""
    forgetting: ForgettingMemory = field(default_factory=ForgettingMemory)
    """What the guard compares with, has told and has done."""
    config_changes: list[dict[str, Any]] = field(default_factory=list)
    """What was changed at which resume: `step`, and `changes` as `config_changes` gives them."""
    changed_now: dict[str, list[Any]] = field(default_factory=dict)
    """The changes at the latest resume."""

    def position(self) -> dict[str, int]:
        """How far the run has read."""
        samples = self.trajectory.consumed_samples
        return {"consumed_samples": samples, "consumed_tokens": samples * self.stream.seq_length}

    def compare_benchmarks(self, fingerprints: Mapping[str, str]) -> None:
        """Take other requests of a task than those last measured for a change of the configuration."""
        before = self.last_benchmarks[1].fingerprints if self.last_benchmarks is not None else {}
        changes = {
            f"evaluation.benchmarks.{task}.requests": [before[task], asked]
            for task, asked in fingerprints.items()
            if before.get(task, asked) != asked
        }
        if not changes:
            return
        if not self.changed_now:
            self.config_changes.append({"step": self.trajectory.step, "changes": self.changed_now})
        self.changed_now.update(changes)

    def to_json(self) -> dict[str, Any]:
        """The state as JSON."""
        trajectory = self.trajectory
        return {
            **self.position(),
            "trajectory": trajectory.to_json(),
            "stream": self.stream.state_dict(trajectory.consumed_samples),
            "first_evaluation": _evaluation_json(self.first_evaluation),
            "last_evaluation": _evaluation_json(self.last_evaluation),
            "forgetting": self.forgetting.to_json(),
            "first_benchmarks": scores_to_json(self.first_benchmarks),
            "last_benchmarks": scores_to_json(self.last_benchmarks),
            "spike_windows": self.spikes.to_json(),
            **self.incidents.to_json(),
            "config_changes": self.config_changes,
        }

    def stands_for(self, record: Mapping[str, Any]) -> bool:
        """Whether a record of metrics.jsonl is of something that this run has done, and will not do again."""
        step, now = record["step"], self.trajectory.step
        if record["kind"] == "incident":
            known = {(incident.step, incident.cause) for incident in self.incidents.incidents}
            return (step, record.get("cause")) in known
        if step != now:
            return step < now
        if record["kind"] == "evaluation":
            return self.last_evaluation is not None and self.last_evaluation[0] == now
        if record["kind"] == "forgetting":
            told = self.forgetting.told.get(str(record.get("what")))
            return told is not None and told.step == now
        if record["kind"] == "decision":
            # Those on topics come after the checkpoint of their step, mostly; they are made, and written, again.
            made = [(decision.at_sample, decision.moves) for decision in self.stream.decisions]
            return (record.get("at_sample"), record.get("moves", "topics")) in made
        if record["kind"] == "benchmark":
            return self.last_benchmarks is not None and self.last_benchmarks[0] == now
        # Changes and resumes come after the checkpoint of their step, too.
        return record["kind"] not in ("configuration", "resume")


def start_run_state(job: JobConfig, *, vocab_size: int, cache_builder: bool) -> RunState:
    """A run that begins.

    Raises:
        ValueError: the corpora do not fit the job.
    """
    stream = DataStream.build(job.data, cache_builder=cache_builder, vocab_size=vocab_size)
    return RunState(
        stream=stream,
        trajectory=Trajectory(job.training, stream.num_samples),
        spikes=SpikeDetector(job.healing),
        incidents=IncidentLog(job.healing),
    )


def resume_run_state(
    job: JobConfig,
    job_json: Mapping[str, Any],
    state: Mapping[str, Any],
    *,
    where: str,
    vocab_size: int,
    cache_builder: bool,
) -> RunState:
    """The run of a checkpoint's `state`, which lies in the file `where`.

    Raises:
        DamagedCheckpoint: a field of the state cannot be; names the file.
        ValueError: the corpora or the job do not fit it.
    """
    samples = state.get("consumed_samples")
    total = state["stream"].get("num_samples") if isinstance(state["stream"], dict) else None
    if not isinstance(samples, int) or samples < 0 or (isinstance(total, int) and samples > total):
        raise DamagedCheckpoint(
            f"{where}: consumed_samples is {samples!r}, not a number of the stream's {total} samples; use another "
            "checkpoint"
        )
    stream = DataStream.build(
        job.data, state=state["stream"], cache_builder=cache_builder, at_sample=samples, vocab_size=vocab_size
    )
    try:
        trajectory = Trajectory.resume(job.training, stream.num_samples, state, where)
        changes = config_changes(state["config"], job_json)
        found = RunState(
            stream=stream,
            trajectory=trajectory,
            spikes=SpikeDetector(job.healing, state.get("spike_windows")),
            incidents=IncidentLog(job.healing, state.get("incidents", ()), int(state.get("in_a_row", 0))),
            first_evaluation=_evaluation(state.get("first_evaluation", state.get("last_evaluation"))),
            last_evaluation=_evaluation(state.get("last_evaluation")),
            forgetting=_forgetting(state, where),
            first_benchmarks=scores_from_json(state.get("first_benchmarks")),
            last_benchmarks=scores_from_json(state.get("last_benchmarks")),
            config_changes=list(state.get("config_changes", ())),
            changed_now=changes,
        )
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        told = str(error) if str(error).startswith(where) else f"{where}: damaged ({error!r}); use another checkpoint"
        raise DamagedCheckpoint(told) from None
    if changes:
        found.config_changes.append({"step": trajectory.step, "changes": changes})
    return found


def _forgetting(state: Mapping[str, Any], where: str) -> ForgettingMemory:
    """The guard's memory. In a checkpoint that is older than it, the first measurements known are the baselines."""
    if "forgetting" in state:
        return ForgettingMemory.from_json(state["forgetting"], where)
    found = ForgettingMemory()
    for evaluation in (_evaluation(state.get("first_evaluation")), _evaluation(state.get("last_evaluation"))):
        if evaluation is not None:
            found.begin(evaluation[0], loss_figures(evaluation[1].loss_by_component, evaluation[1].tokens_by_component))
    for scores in (scores_from_json(state.get("first_benchmarks")), scores_from_json(state.get("last_benchmarks"))):
        if scores is not None:
            found.begin(scores[0], accuracy_figures(scores[1].scores, scores[1].fingerprints))
    return found


def _evaluation_json(evaluation: tuple[int, EvaluationResult] | None) -> dict[str, Any] | None:
    return None if evaluation is None else {"step": evaluation[0], **dataclasses.asdict(evaluation[1])}


def _evaluation(content: Mapping[str, Any] | None) -> tuple[int, EvaluationResult] | None:
    if content is None:
        return None
    losses = {str(name): float(loss) for name, loss in content["loss_by_component"].items()}
    tokens = {str(name): int(number) for name, number in content["tokens_by_component"].items()}
    return int(content["step"]), EvaluationResult(losses, tokens)
