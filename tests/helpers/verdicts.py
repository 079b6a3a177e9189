"""What a disturbed run has to have in common with an undisturbed one, and what a refusal has to look like."""

from __future__ import annotations

import contextlib
import json
import re
from collections import Counter
from pathlib import Path
from typing import Any

from tests.helpers.small_job import JOB_FILE, RUN

# What may differ between two runs that do the same: times, speeds, memory.
FIELDS = {
    "step": ("consumed_samples", "consumed_tokens", "global_batch_size", "grad_norm", "learning_rate", "loss",
             "loss_by_component", "num_tokens", "shares", "updated"),
    "evaluation": ("consumed_samples", "loss", "perplexity"),
    "decision": ("consumed_samples", "at_tokens", "perplexity", "shares_before", "shares_after"),
}  # fmt: skip
OWN_LINE = re.compile(r"^(?:\[[\w:]+\]:?\s*)?pretrain_llama3_synE(?: \(process \d+\))?: (.*)$", re.MULTILINE)
OWN_FRAME = re.compile(r'File "[^"]*(?:megatron_synE/|pretrain_llama3_synE\.py)[^"]*", line')
TRUNCATED = re.compile(r"^(\S+: was truncated, or its disk failed, .*)$", re.MULTILINE)
"""Said by the handler of SIGBUS, in each process that dies of it."""
WORDS_OF_NO_ONE = ("Segmentation fault", "Bus error", "terminate called", "Fatal Python error", "core dumped")


def records(folder: Path) -> list[dict[str, Any]]:
    """metrics.jsonl of the run in `folder`; a line that is not whole is left out."""
    path = folder / RUN / "metrics.jsonl"
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines() if path.exists() else []
    found = []
    for line in lines:
        with contextlib.suppress(ValueError):
            found.append(json.loads(line))
    return found


def last_step(folder: Path) -> int:
    """Of the steps that the run has logged."""
    return max((record["step"] for record in records(folder) if record["kind"] == "step"), default=0)


def final_state(folder: Path) -> dict[str, Any]:
    """state.json of the newest checkpoint."""
    newest = max((folder / RUN).glob("step_*"))
    return dict(json.loads((newest / "state.json").read_text(encoding="utf-8")))


def differences(expected: Path, actual: Path, *, relative: float = 0.0) -> list[str]:
    """Between the finished runs of two folders: records, stream, documents, and what lies about.

    Args:
        relative: how far numbers may lie apart, for runs of different layouts.
    """
    found = doubled(actual)
    ours, theirs = _by_place(records(actual)), _by_place(records(expected))
    for place in sorted(ours.keys() | theirs.keys()):
        name = f"{place[0]} {place[1]}"
        if place not in ours or place not in theirs:
            found.append(f"{name}: only in the {'reference' if place in theirs else 'run'}'s metrics")
            continue
        found += [
            f"{name}: {field} is {ours[place].get(field)}, expected {theirs[place].get(field)}"
            for field in FIELDS[place[0]]
            if not close(ours[place].get(field), theirs[place].get(field), relative)
        ]
    state, reference = final_state(actual), final_state(expected)
    for field in ("step", "consumed_samples", "trajectory", "stream"):
        if not close(state.get(field), reference.get(field), relative):
            found.append(f"state.json: {field} differs")
    if not found and documents_read(actual) != documents_read(expected):
        found.append("the documents read differ")
    return found + left_over(actual)


def doubled(folder: Path) -> list[str]:
    """Records that stand twice."""
    places = Counter((record["kind"], record["step"]) for record in records(folder))
    return [f"{kind} {step}: {number} records" for (kind, step), number in places.items() if number > 1]


def left_over(folder: Path) -> list[str]:
    """Half-written files and folders."""
    found = [path for path in (folder / RUN).rglob("*") if path.name.endswith((".tmp", ".replaced", ".part"))]
    return [f"{path.relative_to(folder)}: left behind" for path in found]


def unread_or_repeated(folder: Path, batch_size: int) -> list[str]:
    """Where the run in `folder`, finished at this batch size, did not read the samples one after the other, each once.
    """
    found, consumed = doubled(folder), 0
    steps = sorted((record for record in records(folder) if record["kind"] == "step"), key=lambda r: r["step"])
    if [record["step"] for record in steps] != list(range(1, len(steps) + 1)):
        found.append(f"steps logged: {[record['step'] for record in steps]}")
    for record in steps:
        consumed += record["global_batch_size"]
        if record["consumed_samples"] != consumed:
            found.append(f"step {record['step']}: {record['consumed_samples']} samples consumed, expected {consumed}")
            break
    stream, trajectory = _stream_and_trajectory(folder)
    if trajectory.samples_of_steps(0, trajectory.step) != [range(consumed)]:
        found.append(f"the ledger has {trajectory.samples_of_steps(0, trajectory.step)}, not samples 0 to {consumed}")
    if stream.num_samples - consumed >= batch_size:
        found.append(f"{stream.num_samples - consumed} samples at the end were not read")
    return found + left_over(folder)


def documents_read(folder: Path) -> list[list[Any]]:
    """The ledger: the documents of each step of the finished run in `folder`, by component and epoch."""
    from megatron_synE.data.ledger import documents_read as read

    stream, trajectory = _stream_and_trajectory(folder)
    with contextlib.chdir(folder):
        return [
            [step, entry.component, entry.epoch, entry.documents.tolist()]
            for step in range(trajectory.step)
            for samples in trajectory.samples_of_steps(step, step + 1)
            for entry in read(stream, samples.start, samples.stop)
        ]


def _stream_and_trajectory(folder: Path) -> tuple[Any, Any]:
    from megatron_synE.config.parse import parse_job
    from megatron_synE.data.stream import DataStream
    from megatron_synE.training.trajectory import Trajectory

    state = final_state(folder)
    with contextlib.chdir(folder):
        job = parse_job(["--config", JOB_FILE])
        stream = DataStream.build(job.data, state=state["stream"])
    return stream, Trajectory.resume(job.training, stream.num_samples, state)


def close(one: Any, other: Any, relative: float) -> bool:
    """Equal, numbers but for rounding where that is allowed."""
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(close(one[key], other[key], relative) for key in one)
    if isinstance(one, list) and isinstance(other, list):
        return len(one) == len(other) and all(close(a, b, relative) for a, b in zip(one, other, strict=True))
    if relative and isinstance(one, float) and isinstance(other, float):
        return abs(one - other) <= relative * max(abs(one), abs(other))
    return bool(one == other)


def _by_place(found: list[dict[str, Any]]) -> dict[tuple[str, int], dict[str, Any]]:
    return {(record["kind"], record["step"]): record for record in found if record["kind"] in FIELDS}


def own_messages(output: str) -> list[str]:
    """What our program said on its way out: errors and the line about a signal."""
    return [match[1] for match in OWN_LINE.finditer(output)]


def untidy(output: str, *, forked: bool) -> list[str]:
    """Tracebacks of ours, the last words of a process that crashed, and more than one message.

    What a file lacks all processes find; they wait some seconds for the first to tell it, too few on a busy machine.
    """
    found = []
    if OWN_FRAME.search(output) or (forked and "Traceback" in output):
        found.append("a traceback")
    found += [words for words in WORDS_OF_NO_ONE if words in output]
    messages = set(own_messages(output))
    if len(messages) > 1:
        found.append(f"{len(messages)} messages: {sorted(messages)}")
    return found
