"""What metrics.jsonl says of a run, as curves over the tokens read."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

Curve = list[tuple[int, float]]
"""Points (tokens read, value), in the order of the file."""


@dataclass
class RunRecords:
    """Curves and marks; all empty where there are no records."""

    loss: Curve = field(default_factory=list)
    """Of each logged step."""
    heldout_loss: dict[str, Curve] = field(default_factory=dict)
    """Component → loss on its held-out documents."""
    marks: dict[str, list[int]] = field(default_factory=dict)
    """Kind of record (`resume`, `configuration`, `incident`) → tokens read when it was written."""
    num_damaged: int = 0
    """Lines that cannot be read."""


def read_records(path: Path) -> RunRecords:
    """The records of a run; of one that is still going on, too. No file is no record.

    Raises:
        OSError: it is there and cannot be opened.
    """
    found = RunRecords()
    if not path.exists():
        return found
    with open(path, "rb") as file:
        for line in file:
            try:
                record = json.loads(line)
                tokens, kind = int(record["consumed_tokens"]), str(record["kind"])
            except (ValueError, KeyError, TypeError):
                found.num_damaged += line.endswith(b"\n")  # the last line may be half-written at this moment
                continue
            _add(found, kind, tokens, record)
    return found


def _add(found: RunRecords, kind: str, tokens: int, record: Mapping[str, Any]) -> None:
    if kind == "step":
        found.loss.append((tokens, _number(record.get("loss"))))
    elif kind == "evaluation" and isinstance(record.get("loss"), dict):
        for name, loss in record["loss"].items():
            found.heldout_loss.setdefault(name, []).append((tokens, _number(loss)))
    elif kind in ("resume", "configuration", "incident"):
        found.marks.setdefault(kind, []).append(tokens)


def _number(value: object) -> float:
    """JSON has no nan: null stands for it."""
    return float(value) if isinstance(value, int | float) else math.nan
