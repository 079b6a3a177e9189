"""What is read first: what was gained and what was lost, then how much was done."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

Json = dict[str, Any]


@dataclass(frozen=True)
class Tile:
    """One number, with what it counts."""

    label: str
    value: float
    detail: str = ""
    tone: Literal["", "gained", "lost"] = ""
    """How it is coloured."""
    format: Literal["integer", "short"] = "integer"


def headline(report: Mapping[str, Any]) -> list[Json]:
    """The tiles of a run's report, as JSON."""
    tiles = [tile for table in report["evaluations"] for tile in _verdicts(table)]
    tiles += _benchmarks(report["benchmarks"]) + _heldout(report["heldout"]) + _amounts(report["run"])
    incidents = sum(event["kind"] in ("incident", "killed", "forgetting") for event in report["events"])
    resumes = sum(event["kind"] == "resume" for event in report["events"])
    times = "once" if resumes == 1 else f"{resumes} times"
    tiles.append(Tile("Incidents", incidents, f"resumed {times}" if resumes else "", "lost" if incidents else ""))
    return [asdict(tile) for tile in tiles]


def _verdicts(table: Mapping[str, Any]) -> list[Tile]:
    """Of a finished evaluation against the backbone's."""
    counts = table["verdicts"]
    if not counts:
        return []
    detail = f"of {sum(counts.values())} figures, against {table['against'].rstrip('/').rpartition('/')[2]}"
    return [
        Tile("Tasks gained", counts["gained"], detail, "gained" if counts["gained"] else ""),
        Tile("Tasks lost", counts["lost"], f"{counts['unclear']} unclear", "lost" if counts["lost"] else ""),
    ]


def _benchmarks(table: Mapping[str, Any] | None) -> list[Tile]:
    changes = _differences(table)
    if table is None or not changes:
        return []
    up, down = sum(change > 0 for change in changes), sum(change < 0 for change in changes)
    since = f"of {len(changes)} figures since step {table['first_step']:,}"
    return [
        Tile("Benchmarks higher", up, since, "gained" if up else ""),
        Tile("Benchmarks lower", down, "a difference, not yet a proof" if down else "", "lost" if down else ""),
    ]


def _heldout(table: Mapping[str, Any] | None) -> list[Tile]:
    changes = _differences(table)
    if table is None or not changes:
        return []
    rows = [row for row in table["rows"] if row["difference"] is not None]  # the largest gain first
    best, worst = (f"{row['component']} {_signed(row['difference'])}" for row in (rows[0], rows[-1]))
    fell, rose = sum(change < 0 for change in changes), sum(change > 0 for change in changes)
    since = f"of {len(changes)} components since step {table['first_step']:,}"
    return [
        Tile("Held-out loss fell", fell, f"{since}; most: {best}", "gained" if fell else ""),
        Tile("Held-out loss rose", rose, f"{'most' if rose else 'fell least'}: {worst}", "lost" if rose else ""),
    ]


def _amounts(facts: Mapping[str, Any]) -> list[Tile]:
    planned, rate = facts["planned_tokens"], facts["tokens_per_second"]
    tiles = [Tile("Tokens", facts["tokens"], f"of {planned:,} planned" if planned else "", format="short")]
    if rate:
        mfu = f"MFU {facts['mean_mfu']:.1%}" if facts["mean_mfu"] else "mean of the logged steps"
        tiles.append(Tile("Tokens per second", rate, mfu, format="short"))
    return tiles


def _differences(table: Mapping[str, Any] | None) -> Sequence[float]:
    """Between two measurements; none where there was only one."""
    if table is None or table["first_step"] == table["last_step"]:
        return []
    return [row["difference"] for row in table["rows"] if row["difference"] is not None]


def _signed(value: float) -> str:
    return f"{value:+.4f}".replace("-", "−")
