"""The ledger as text: what ranges of samples read, component by component."""

from __future__ import annotations

from collections.abc import Sequence

from megatron_synE.data.ledger import Entry
from megatron_synE.data.stream import DataStream


def stage_ranges(stream: DataStream) -> list[tuple[str, int, int]]:
    """Title, first and end sample of each stage; of all together too, where there are several."""
    stages = [(f"stage {stage.name}", stage.start, stage.end) for stage in stream.planner.stages]
    return stages if len(stages) == 1 else [*stages, ("all stages", 0, stream.num_samples)]


def ledger_table(title: str, entries: Sequence[Entry], first: int, end: int, seq_length: int) -> str:
    """The ledger of a range as text."""
    width = max(len("component"), *(len(entry.component) for entry in entries))
    lines = [f"{title}: {(end - first) * seq_length:,} tokens in samples [{first:,}, {end:,})"]
    lines.append(
        f"  {'component':{width}}  {'share':>8}  {'tokens':>17}  {'samples':>13}  {'documents':>12}  "
        f"{'epochs':>15}  {'repeated':>15}"
    )
    for entry in entries:
        epochs = f"{entry.first_epoch:.2f} → {entry.last_epoch:.2f}"
        lines.append(
            f"  {entry.component:{width}}  {entry.share:8.4%}  {entry.tokens:17,}  {entry.samples:13,}  "
            f"{entry.documents:12,}  {epochs:>15}  {entry.repeated_tokens:15,}"
        )
    return "\n".join(lines)
