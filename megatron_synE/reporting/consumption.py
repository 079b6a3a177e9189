"""What a run has read and what it will read, from the state in its checkpoint; the corpora add the documents.

Tokens, epochs and repeats follow from the state alone: it has every segment, where each component stands at its start,
and how many tokens a component's epoch has.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from megatron_synE.config.parse import parse_job
from megatron_synE.data import DataStream, ledger
from megatron_synE.data.mixture import PeriodTables
from megatron_synE.data.segments import Timeline
from megatron_synE.data.state import StreamState
from megatron_synE.reporting.run_files import RunData, absolute_paths


@dataclass(frozen=True)
class ComponentRead:
    """One component: what was read of it so far, and what the whole run reads by the plan as it stands."""

    component: str
    identity: str
    """Hash of what determines its documents: corpus, topics, held-out part."""
    epoch_tokens: int
    tokens: int
    share: float
    """Of all tokens read."""
    epochs: float
    """Passes over the component."""
    repeated_tokens: int
    """Tokens read that an earlier epoch had read."""
    documents: int | None
    """Documents of which a token was read, once for each epoch; None where the corpus cannot be opened."""
    planned_tokens: int
    planned_epochs: float


@dataclass(frozen=True)
class StageRead:
    """One stage of the plan."""

    stage: str
    start_tokens: int
    end_tokens: int
    shares: Mapping[str, float]
    """Component → share of the stage's tokens."""


@dataclass(frozen=True)
class Consumption:
    """What was read, and the plan."""

    seq_length: int
    num_samples: int
    """Of the whole run."""
    consumed_samples: int
    passed_over_samples: int
    """Left out by rollbacks."""
    components: Sequence[ComponentRead]
    stages: Sequence[StageRead]
    state: StreamState
    documents_problem: str
    """Why the documents are not counted; empty where they are."""

    @property
    def planned_tokens(self) -> int:
        """Of the whole run."""
        return self.num_samples * self.seq_length


def consumption(run: RunData) -> Consumption:
    """Of a run that has a checkpoint.

    Raises:
        ValueError: its state is damaged.
    """
    assert run.state is not None
    state = StreamState.from_json(run.state["stream"])
    consumed, passed = _position(run.state)
    parts = _complement(passed, consumed)
    timeline = Timeline(state.segments, state.num_samples, PeriodTables())
    names = [component["name"] for component in state.components]
    documents, problem = _documents(run, parts)
    ranges = [(timeline.cursors(part.start).tolist(), timeline.cursors(part.stop).tolist()) for part in parts]
    end, planned = timeline.cursors(consumed).tolist(), timeline.cursors(state.num_samples).tolist()
    length, total = state.seq_length, sum(len(part) for part in parts)
    components = []
    for place, (name, recorded) in enumerate(zip(names, state.components, strict=True)):
        epoch_tokens = recorded["num_tokens"]
        spans = [(start[place] * length, stop[place] * length) for start, stop in ranges]
        tokens = sum(stop - start for start, stop in spans)
        components.append(
            ComponentRead(
                component=name,
                identity=recorded["identity"],
                epoch_tokens=epoch_tokens,
                tokens=tokens,
                share=tokens / (total * length) if total else 0.0,
                epochs=end[place] * length / epoch_tokens,
                repeated_tokens=sum(max(0, stop - max(start, epoch_tokens)) for start, stop in spans),
                documents=None if documents is None else documents.get(name, 0),
                planned_tokens=planned[place] * length,
                planned_epochs=planned[place] * length / epoch_tokens,
            )
        )
    return Consumption(
        seq_length=length,
        num_samples=state.num_samples,
        consumed_samples=consumed,
        passed_over_samples=consumed - total,
        components=components,
        stages=_stages(state, timeline, names),
        state=state,
        documents_problem=problem,
    )


def _position(state: Mapping[str, Any]) -> tuple[int, list[range]]:
    """Samples consumed, and the ranges among them that were passed over.

    Raises:
        ValueError: they are no such thing.
    """
    try:
        passed = (state.get("trajectory") or {}).get("passed_over", [])
        return int(state["consumed_samples"]), [range(int(first), int(end)) for first, end in passed]
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"state.json: trajectory: damaged ({error!r}); use another checkpoint") from None


def _complement(passed: Sequence[range], end: int) -> list[range]:
    """The parts of [0, end) that were not passed over."""
    found, at = [], 0
    for each in passed:
        found.append(range(at, min(each.start, end)))
        at = max(at, min(each.stop, end))
    return [part for part in (*found, range(at, end)) if part]


def _stages(state: StreamState, timeline: Timeline, names: Sequence[str]) -> list[StageRead]:
    """Stages in the order that the segments have them, with the shares of all that they read."""
    starts: dict[str, int] = {}
    for segment in state.segments:
        starts.setdefault(segment.stage, segment.start)
    ends = [*list(starts.values())[1:], state.num_samples]
    found = []
    for (name, start), end in zip(starts.items(), ends, strict=True):
        read = (timeline.cursors(end) - timeline.cursors(start)).tolist()
        shares = {component: count / (end - start) for component, count in zip(names, read, strict=True)}
        found.append(StageRead(name, start * state.seq_length, end * state.seq_length, shares))
    return found


def _documents(run: RunData, parts: Sequence[range]) -> tuple[dict[str, int] | None, str]:
    """Component → documents read, by the ledger; or None, and why the corpora do not tell them."""
    assert run.state is not None
    try:
        stream = DataStream.build(_data_config(run), state=run.state["stream"], keep_indices=False)
    except (ValueError, OSError) as error:
        return None, str(error)
    found: dict[str, int] = {}
    for part in parts:
        for entry in ledger(stream, part.start, part.stop):
            found[entry.component] = found.get(entry.component, 0) + entry.documents
    return found, ""


def _data_config(run: RunData) -> Any:
    """Of the checkpoint, with its corpora where they lay.

    Raises:
        ValueError: this version does not know it.
    """
    assert run.state is not None
    try:
        config = run.state["config"]
        content = {**config, "data": absolute_paths(config["data"], run.directory)}
    except (AttributeError, KeyError, TypeError) as error:
        raise ValueError(f"state.json: config: damaged ({error!r})") from None
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "config.yaml"
        file.write_text(json.dumps(content), encoding="utf-8")  # JSON is YAML
        return parse_job(["--config", str(file)]).data
