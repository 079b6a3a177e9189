"""Every check of a job before a process group or a file is made: one list, for the trainer, its dry run and the tools.

Nothing here needs megatron-core.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, TypeVar

from megatron_synE.checkpoint import DamagedCheckpoint, architecture_from_hf, quick_check, resume_candidates
from megatron_synE.checkpoint.contents import Contents, check_architecture
from megatron_synE.checkpoint.layout import check_place, resume_notes
from megatron_synE.config.guard import WHERE as GUARD
from megatron_synE.config.job import JobConfig
from megatron_synE.config.model import LlamaArchitecture
from megatron_synE.data.preflight import examine as examine_data
from megatron_synE.data.stream import DataStream
from megatron_synE.training.forgetting import ForgettingMemory, bounds_of, stop_text
from megatron_synE.training.machine import machine_notes, machine_problems
from megatron_synE.training.rendering import benchmark_problems, render
from megatron_synE.training.trajectory import Trajectory

T = TypeVar("T")


@dataclass
class Findings:
    """What is known of a job before it starts."""

    problems: list[str] = field(default_factory=list)
    """Why it cannot run, one line each: the field or file, and the fix."""
    lacking: list[str] = field(default_factory=list)
    """The same, of what this machine lacks."""
    notes: list[str] = field(default_factory=list)
    """What a person should know, and the run does without."""
    resumed_from: Contents | None = None
    """The checkpoint that the run goes on from, as far as is known before its tensors are read."""
    architecture: LlamaArchitecture | None = None
    """None where its fields are not whole."""
    stream: DataStream | None = None
    """None where it cannot be planned."""
    trajectory: Trajectory | None = None
    """The way through the stream, from where the run stands; None without a stream."""


def check_job(job: JobConfig, world_size: int) -> LlamaArchitecture:
    """The model's sizes, after looking at every field and every file that the job names.

    Raises:
        ValueError: all that is wrong, one line each.
    """
    found = examine_job(job, world_size)
    if found.problems or found.lacking:
        raise ValueError("\n".join(found.problems + found.lacking))
    assert found.architecture is not None
    return found.architecture


def examine_job(
    job: JobConfig, world_size: int, *, keep_indices: bool = True, render_benchmarks: bool = False
) -> Findings:
    """Everything that can be found out about a start with so many processes. Missing indices of the data are built.

    Args:
        keep_indices: whether they are written to their cache; if not, nothing is written at all.
        render_benchmarks: whether their data are read as well; the trainer does that, once for all of its processes.
    """
    found, base, origin_is_readable = Findings(), None, True
    try:
        found.resumed_from = _resumed_from(job)
        base = _base_architecture(job, found.resumed_from)
    except ValueError as error:
        origin_is_readable = False
        found.problems.append(str(error))
    found.problems += job.problems(world_size, base, base_is_known=origin_is_readable)
    found.lacking, found.notes = machine_problems(job), machine_notes(job)
    found.architecture = _architecture(job, base)
    _examine_stream(job, found, keep_indices)
    if found.stream is not None and not job.evaluation.guard_problems(job.data):
        _examine_guard(job, found, found.stream)
    if found.architecture is not None:
        if origin_is_readable:
            found.problems += _origin_problems(job, found.resumed_from, found.architecture)
        found.problems += _place_problems(job, found.architecture)
    _examine_benchmarks(job, found, render_benchmarks)
    if job.checkpoint.save is not None and found.resumed_from is not None:
        found.notes += resume_notes(job.checkpoint.save)
    return found


def examine_plan(job: JobConfig) -> Findings:
    """The part of it that concerns what is read: for a look at the plan, wherever the run is to start."""
    found, base, reason = Findings(), None, "the model's sizes are not given"
    try:
        base = _base_architecture(job, _resumed_from(job))
    except ValueError as error:
        reason = str(error)
    found.problems = job.data.problems() + job.training.problems()
    found.architecture = _architecture(job, base)
    if found.architecture is None:
        found.notes.append(f"the corpora's vocabulary is not compared with the model's: {reason}")
    _examine_stream(job, found, keep_indices=True)
    return found


def budget_problems(job: JobConfig, num_samples: int, trajectory: Trajectory) -> list[str]:
    """Whether the data's budget holds a step, and as many as training.train_steps asks for."""
    if trajectory.last_step == 0:
        return [
            f"data.stages: {num_samples} samples are less than one global batch of "
            f"{job.training.global_batch_size_at(0)}; raise the budget, or lower training.global_batch_size"
        ]
    if (job.training.train_steps or 0) > trajectory.last_step:
        return [
            f"training.train_steps: {job.training.train_steps} is more than the {trajectory.last_step} steps of the "
            "budget of data.stages; raise the budget, or drop train_steps"
        ]
    return []


def checkpoint_bytes(job: JobConfig, architecture: LlamaArchitecture) -> int:
    """Size of one checkpoint: weights, and in fp32, whatever the optimizer keeps, main values and two moments."""
    weight_bytes = 2 if job.precision.dtype == "bf16" else 4
    return architecture.num_parameters() * (weight_bytes + 3 * 4)


def _resumed_from(job: JobConfig) -> Contents | None:
    """The checkpoint that the run goes on from.

    Raises:
        ValueError: something was saved in checkpoint.save, but none of it can be gone on from.
    """
    problem: DamagedCheckpoint | None = None
    for directory in resume_candidates(job.checkpoint.save) if job.checkpoint.save is not None else ():
        try:
            contents = quick_check(directory)
        except DamagedCheckpoint as error:
            problem = problem or error
            continue
        if "stream" not in contents.state:
            raise ValueError(
                f"checkpoint.save: {directory} is an imported model, not a run; name it as checkpoint.load, "
                "and another folder as checkpoint.save"
            )
        return contents
    if problem is not None:
        raise problem
    return None


def _base_architecture(job: JobConfig, resumed_from: Contents | None) -> LlamaArchitecture | None:
    """The sizes of the model that the run goes on with or starts from; a preset stands above them."""
    checkpoint, found = job.checkpoint, None
    if resumed_from is not None:
        found = resumed_from.architecture
    elif checkpoint.init_from_hf is not None:
        found = _of_field("checkpoint.init_from_hf", architecture_from_hf, checkpoint.init_from_hf)
    elif checkpoint.load is not None:
        found = _of_field("checkpoint.load", quick_check, checkpoint.load).architecture
    return found if job.model.preset is None else None


def _of_field(field: str, read: Callable[[str], T], folder: str) -> T:
    try:
        return read(folder)
    except ValueError as error:
        raise ValueError(f"{field}: {error}") from None


def _architecture(job: JobConfig, base: LlamaArchitecture | None) -> LlamaArchitecture | None:
    try:
        architecture = job.model.architecture(base)
    except ValueError:
        return None  # reported with the model's fields
    return None if architecture.problems() else architecture


def _examine_stream(job: JobConfig, found: Findings, keep_indices: bool) -> None:
    if job.data.problems():
        return
    state: dict[str, Any] | None = found.resumed_from.state if found.resumed_from is not None else None
    vocab_size = found.architecture.vocab_size if found.architecture is not None else None
    problems, found.stream = examine_data(
        job.data, state and state["stream"], vocab_size=vocab_size, keep_indices=keep_indices
    )
    found.problems += problems
    if found.stream is None or job.training.problems():
        return
    found.notes += _tokenizer_notes(found.stream)
    found.trajectory = Trajectory(job.training, found.stream.num_samples)
    if found.resumed_from is not None:
        where = found.resumed_from.directory / "state.json"
        try:
            found.trajectory = Trajectory.resume(
                job.training, found.stream.num_samples, found.resumed_from.state, str(where)
            )
        except ValueError as error:
            found.notes.append(f"{error}; the run would go on from the checkpoint before it")
            return
    found.problems += budget_problems(job, found.stream.num_samples, found.trajectory)


def _examine_guard(job: JobConfig, found: Findings, stream: DataStream) -> None:
    """Guarded losses that nothing can be measured of, and a run that the guard has stopped."""
    guard = job.evaluation.guard
    bounds = bounds_of(guard, job.data)
    losses = [what.removeprefix("loss of ") for what, bound in bounds.items() if bound.is_loss]
    measured = [name for name, samples in stream.heldout().items() if len(samples)] if losses else []
    for name in losses:
        source, _, topic = name.partition("/")
        if topic and name not in stream.component_names:
            known = ", ".join(other for other in stream.component_names if other.startswith(f"{source}/"))
            found.problems.append(f"{GUARD}.max_loss_increase.sources: no component {name!r}; {source} has {known}")
        elif not any(name in (component, component.partition("/")[0]) for component in measured):
            found.problems.append(
                f"{GUARD}.max_loss_increase: {name} has no held-out tokens to measure its loss on; raise "
                f"data.sources.{source}.heldout_fraction, or set its bound to null"
            )
    if found.resumed_from is None or "forgetting" not in found.resumed_from.state or guard.reaction != "stop":
        return
    state = found.resumed_from.state
    try:
        memory = ForgettingMemory.from_json(state["forgetting"], str(found.resumed_from.directory / "state.json"))
    except ValueError as error:
        found.notes.append(f"{error}; the run would go on from the checkpoint before it")
        return
    if past := memory.told_excesses(bounds):
        found.problems.append(stop_text(state["step"], past))


def _examine_benchmarks(job: JobConfig, found: Findings, render_them: bool) -> None:
    if not job.evaluation.benchmarks.tasks or job.evaluation.problems():
        return
    problems = benchmark_problems(job)
    if not problems and render_them and found.architecture is not None:
        rendering = render(job, found.architecture, None)
        problems = rendering.problems
        found.notes += [f"benchmarks: {note}" for note in rendering.notes]
    found.problems += problems


def _tokenizer_notes(stream: DataStream) -> list[str]:
    """Sources whose corpora were made by different tokenizers, as far as their sidecars tell."""
    sources_of: dict[str, list[str]] = {}
    for source in {component.source.name: component.source for component in stream.components}.values():
        tokenizer = source.corpus.tokenizer or {}
        if tokenizer.get("fingerprint"):
            sources_of.setdefault(str(tokenizer["fingerprint"]), []).append(source.name)
    if len(sources_of) < 2:
        return []
    groups = " | ".join(", ".join(names) for names in sources_of.values())
    return [f"data.sources: tokenised by {len(sources_of)} different tokenizers: {groups}; see tools/inspect_corpus.py"]


def _origin_problems(job: JobConfig, resumed_from: Contents | None, own: LlamaArchitecture) -> list[str]:
    """Whether the weights that the run goes on with or starts from are those of this model."""
    checkpoint = job.checkpoint
    try:
        if resumed_from is not None:
            check_architecture(resumed_from, own, sizes_only=not resumed_from.state["has_optimizer"])
        elif checkpoint.init_from_hf is not None:
            from megatron_synE.checkpoint.hf.importing import check_hf

            _of_field("checkpoint.init_from_hf", lambda folder: check_hf(folder, own), checkpoint.init_from_hf)
        elif checkpoint.load is not None:
            contents = _of_field("checkpoint.load", quick_check, checkpoint.load)
            check_architecture(contents, own, sizes_only=True)
    except ValueError as error:
        return [str(error)]
    return []


def _place_problems(job: JobConfig, architecture: LlamaArchitecture) -> list[str]:
    """Whether the run's folders can be written to, that of the checkpoints with room for one."""
    found = []
    folders = {"checkpoint.save": job.checkpoint.save, "logging.directory": job.logging.directory}
    for name, folder in folders.items():
        if folder is not None:
            try:
                check_place(folder, checkpoint_bytes(job, architecture) if name == "checkpoint.save" else 0, name)
            except ValueError as error:
                found.append(str(error))
    return found
