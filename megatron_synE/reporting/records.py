"""What metrics.jsonl says of a run, in bounded memory: curves over the tokens read, events, and sums over all steps."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import orjson

from megatron_synE.progress import ProgressBar
from megatron_synE.reporting.curves import EveryNth, ThinnedCurve
from megatron_synE.reporting.record_shapes import is_number, is_whole

METRICS_FILE = "metrics.jsonl"
MAX_POINTS = 2000
"""Of a curve of the whole run."""
MAX_POINTS_OF_COMPONENT = 400
"""Of a curve of one component."""
MAX_EVENTS = 400
"""Of each kind."""
DOCUMENTS_NAMED = 20
"""Of an incident."""

STEP_FIELDS = ("loss", "grad_norm", "learning_rate", "tokens_per_second", "tflops_per_device", "mfu", "step_seconds",
               "data_seconds", "peak_memory_gib", "global_batch_size")  # fmt: skip
EVENTS = ("start", "stop", "resume", "configuration", "incident", "decision", "forgetting")

Record = dict[str, Any]


class Events:
    """Records of one kind: the first and the last ones, and how many there are."""

    def __init__(self, max_kept: int = MAX_EVENTS) -> None:
        self._max_kept = max_kept
        self.records: list[Record] = []
        self.num_recorded = 0

    def add(self, record: Record) -> None:
        """One more."""
        self.num_recorded += 1
        self.records.append(record)
        if len(self.records) > self._max_kept:
            del self.records[self._max_kept // 2]

    @property
    def num_left_out(self) -> int:
        """Those between the first and the last ones."""
        return self.num_recorded - len(self.records)


@dataclass(frozen=True)
class Mixture:
    """Shares of the components from a point on."""

    tokens: int
    """Read before its first step; where not every step is logged, before the one after the last with other shares."""
    shares: Mapping[str, float]


@dataclass
class StepTotals:
    """Sums over the logged steps."""

    num_logged: int = 0
    num_tokens: float = 0.0
    """Read in them."""
    seconds: float = 0.0
    data_seconds: float = 0.0
    mfu_seconds: float = 0.0
    """Sum of MFU × seconds."""
    peak_memory_gib: float = 0.0
    num_skipped: int = 0
    """Steps that did not update the weights."""


@dataclass
class Measurements:
    """Evaluations of one kind, of a number for each of several names."""

    curves: dict[str, ThinnedCurve] = field(default_factory=dict)
    first: Record | None = None
    last: Record | None = None
    num_recorded: int = 0

    def add(self, record: Record, values: Mapping[str, Any]) -> None:
        """One more, with its numbers."""
        self.num_recorded += 1
        self.first, self.last = self.first or record, record
        _add_to(self.curves, record, values)


@dataclass
class RunRecords:
    """All that a report tells of the records; empty where there are none."""

    steps: dict[str, ThinnedCurve] = field(
        default_factory=lambda: {name: ThinnedCurve(MAX_POINTS) for name in STEP_FIELDS}
    )
    """Field of a step → its curve."""
    loss_by_component: dict[str, ThinnedCurve] = field(default_factory=dict)
    totals: StepTotals = field(default_factory=StepTotals)
    heldout: Measurements = field(default_factory=Measurements)
    """Held-out loss of each component."""
    heldout_means: dict[str, ThinnedCurve] = field(default_factory=dict)
    """`mean_loss` and `mixture_loss`."""
    benchmarks: Measurements = field(default_factory=Measurements)
    """`task metric` → its value."""
    mixtures: EveryNth[Mixture] = field(default_factory=lambda: EveryNth(MAX_EVENTS))
    """Each where it begins."""
    decision_tokens: EveryNth[int] = field(default_factory=lambda: EveryNth(MAX_EVENTS))
    """Where topic shares were adjusted."""
    events: dict[str, Events] = field(default_factory=lambda: {kind: Events() for kind in EVENTS})
    """By kind."""
    num_checkpoints: int = 0
    checkpoint_seconds: float = 0.0
    num_records: int = 0
    num_damaged: int = 0
    """Lines that cannot be read."""
    first_time: float | None = None
    """Seconds since 1970 of the first record, and of the last."""
    last_time: float | None = None
    last_step: int = 0
    last_tokens: int = 0

    @property
    def loss(self) -> ThinnedCurve:
        """Of the training steps."""
        return self.steps["loss"]

    @property
    def is_thinned(self) -> bool:
        """Whether a curve has fewer points than were recorded."""
        curves = [*self.steps.values(), *self.loss_by_component.values(), *self.heldout.curves.values()]
        curves += [*self.heldout_means.values(), *self.benchmarks.curves.values()]
        return any(curve.is_thinned for curve in curves)


def read_records(path: Path) -> RunRecords:
    """The records of a run; of one that is still going on, too. No file is no record.

    Raises:
        OSError: it is there and cannot be opened.
    """
    found = RunRecords()
    if not path.exists():
        return found
    mixtures = _MixtureFinder(found.mixtures)
    with open(path, "rb") as file, ProgressBar(str(path), path.stat().st_size, "bytes") as bar:
        for record in _records(file, found, bar):
            _add(found, record)
            if record["kind"] == "step":
                mixtures.add_step(record)
    return found


def _records(lines: Iterable[bytes], found: RunRecords, bar: ProgressBar) -> Iterator[Record]:
    num_bytes = 0
    for number, line in enumerate(lines):
        num_bytes += len(line)
        if number % 1000 == 0:
            bar.at(num_bytes)
        try:
            record = orjson.loads(line)
        except ValueError:
            record = None
        if is_whole(record):
            yield record
        else:
            found.num_damaged += line.endswith(b"\n")  # the last line may be half-written at this moment


def _add(found: RunRecords, record: Record) -> None:
    found.num_records += 1
    if record["kind"] != "incident":  # after a rollback it is of a later step than the position
        found.last_step, found.last_tokens = record["step"], record["consumed_tokens"]
    if "time" in record:
        found.first_time = record["time"] if found.first_time is None else found.first_time
        found.last_time = record["time"]
    kind = record["kind"]
    if kind == "step":
        _add_step(found, record)
    elif kind == "evaluation":
        found.heldout.add(record, _mapping(record, "loss"))
        _add_to(found.heldout_means, record, {name: record.get(name) for name in ("mean_loss", "mixture_loss")})
    elif kind == "benchmark":
        found.benchmarks.add(record, benchmark_values(record))
    elif kind == "checkpoint":
        found.num_checkpoints += 1
        found.checkpoint_seconds += _number(record.get("seconds"))
    elif kind in found.events:
        if kind == "decision":
            found.decision_tokens.add(record["at_tokens"])
        found.events[kind].add(_without_documents(record) if kind == "incident" else record)


def _add_step(found: RunRecords, record: Record) -> None:
    for name, curve in found.steps.items():
        if name in record:
            curve.add(record["step"], record["consumed_tokens"], record[name])
    _add_to(found.loss_by_component, record, _mapping(record, "loss_by_component"))
    totals = found.totals
    totals.num_logged += 1
    totals.seconds += _number(record.get("step_seconds"))
    totals.data_seconds += _number(record.get("data_seconds"))
    # The rate was made of the step's own number of tokens; `num_tokens` counts those that have a loss.
    totals.num_tokens += _number(record.get("tokens_per_second")) * _number(record.get("step_seconds"))
    totals.mfu_seconds += _number(record.get("mfu")) * _number(record.get("step_seconds"))
    totals.peak_memory_gib = max(totals.peak_memory_gib, _number(record.get("peak_memory_gib")))
    totals.num_skipped += record.get("updated") is False


class _MixtureFinder:
    """Finds the steps in which the mixture changes."""

    def __init__(self, mixtures: EveryNth[Mixture]) -> None:
        self._mixtures = mixtures
        self._now: Mapping[str, float] | None = None
        self._read_tokens = 0

    def add_step(self, record: Record) -> None:
        shares = {name: share for name, share in _mapping(record, "shares").items() if is_number(share)}
        begins, self._read_tokens = self._read_tokens, record["consumed_tokens"]
        if shares and shares != self._now:
            self._now = shares
            self._mixtures.add(Mixture(begins, shares))


def benchmark_values(record: Mapping[str, Any]) -> dict[str, Any]:
    """`task metric` → value of a record of kind `benchmark`; numbers of items are no metric."""
    return {
        f"{task} {metric}": value
        for task, metrics in _mapping(record, "benchmarks").items()
        if isinstance(metrics, dict)
        for metric, value in metrics.items()
        if metric != "num_items"
    }


def _number(value: Any) -> float:
    return value if is_number(value) else 0.0


def _mapping(record: Mapping[str, Any], name: str) -> dict[str, Any]:
    value = record.get(name)
    return value if isinstance(value, dict) else {}


def _add_to(curves: dict[str, ThinnedCurve], record: Record, values: Mapping[str, Any]) -> None:
    for name, value in values.items():
        if name not in curves:
            curves[name] = ThinnedCurve(MAX_POINTS_OF_COMPONENT)
        curves[name].add(record["step"], record["consumed_tokens"], value)


def _without_documents(record: Record) -> Record:
    """An incident with the numbers of a few of its documents only: there may be thousands."""
    if record.get("documents") is None:
        return record
    kept: list[Record] = []
    num_documents = 0
    for entry in record["documents"]:
        numbers = entry["documents"]
        num_documents += len(numbers)
        if len(kept) < DOCUMENTS_NAMED and numbers:
            named = {name: entry.get(name) for name in ("component", "corpus", "epoch")}
            kept.append({**named, "documents": numbers[: DOCUMENTS_NAMED - len(kept)]})
    return {**record, "documents": kept, "num_documents": num_documents}
