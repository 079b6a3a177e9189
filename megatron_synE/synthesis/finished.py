"""A finished shard: one row per snippet in input order, and its sums.

A row: ``id`` of the snippet, ``identity`` of the request, ``kind``, ``outcome`` (accepted, rejected, failed),
``reason``, ``document`` where accepted, ``usage`` over all its answers, ``model``, ``attempts`` (answers). The journal
of a shard in progress holds such rows, and answers that were no use (``attempt``).
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import orjson
import xxhash

from megatron_synE.config.json_fields import JsonFields
from megatron_synE.journal import Place, journal_lines
from megatron_synE.synthesis.folder import JobFolder, SnippetShards
from megatron_synE.synthesis.request import Paid
from megatron_synE.synthesis.tally import OUTCOMES, Tallies

SUMS_REMEDY = "restore it, or delete it to have the shard's rows counted again"


@dataclass(frozen=True)
class FinishedShard:
    """What is said of a finished shard beside its rows."""

    num_rows: int
    checksum: str
    """xxh3_128 of the file of rows."""
    fingerprints: dict[str, str] = field(default_factory=dict)
    """Kind → ``Settings.fingerprint`` by which its rows were made."""
    tallies: Tallies = field(default_factory=Tallies)

    @classmethod
    def read(cls, folder: JobFolder, number: int) -> FinishedShard | None:
        """None where the shard is not finished; ValueError where its sums are damaged."""
        try:
            fields = JsonFields.of_file(folder.sums(number), SUMS_REMEDY)
        except FileNotFoundError:
            return None
        return cls(
            fields.integer("num_rows"),
            fields.text("checksum"),
            fields.texts_by_name("fingerprints", bool, "a fingerprint"),
            Tallies.from_json(fields.inner("tallies")),
        )


def finished_rows(folder: JobFolder, shards: SnippetShards) -> Iterator[dict[str, Any]]:
    """The rows of all finished shards, in input order.

    Raises:
        ValueError: a shard is not what was written.
    """
    for number in range(shards.num_shards):
        finished = FinishedShard.read(folder, number)
        if finished is not None:
            yield from _checked_rows(folder.rows(number), finished)


def settled_rows(folder: JobFolder, shards: SnippetShards) -> Iterator[dict[str, Any]]:
    """``finished_rows``, and of the shards in progress the rows that are there, as their journals stand."""
    for number in range(shards.num_shards):
        finished = FinishedShard.read(folder, number)
        if finished is not None:
            yield from _checked_rows(folder.rows(number), finished)
        elif folder.journal(number).exists():
            rows = {row["id"]: row for _, row in journal_lines(folder.journal(number)) if "outcome" in row}
            yield from (rows[snippet.id] for snippet in shards.read(number) if snippet.id in rows)


def reopen(folder: JobFolder, number: int) -> None:
    """Make a finished shard one in progress. Its rows are kept, and serve again where their identity is wanted."""
    finished = FinishedShard.read(folder, number)
    assert finished is not None
    folder.superseded.mkdir(exist_ok=True)
    kept = folder.superseded / f"{number:05d}.{finished.checksum[:16]}.jsonl"
    if not kept.exists():
        os.link(folder.rows(number), kept)
    folder.sums(number).unlink()


def count_row(tallies: Tallies, row: Mapping[str, Any]) -> None:
    """Add a row to the tally of its kind."""
    tally, usage = tallies[row["kind"]], row["usage"]
    counts = tally.counts
    counts[row["outcome"]] += 1
    counts["answers"] += row["attempts"]
    counts["prompt_tokens"] += usage["prompt_tokens"]
    counts["completion_tokens"] += usage["completion_tokens"]
    if row["outcome"] == "accepted":
        counts["accepted_tokens"] += usage["completion_tokens"]
    else:
        tally.reasons[f"{row['outcome']}: {row['reason']}"] += 1


def count_answer(tallies: Tallies, kind: str, answer: Paid) -> None:
    """Add an answer that ended no snippet."""
    counts = tallies[kind].counts
    counts["answers"] += 1
    counts["prompt_tokens"] += answer.prompt_tokens
    counts["completion_tokens"] += answer.completion_tokens


def journal_tallies(path: Path) -> Tallies:
    """Of all answers in a journal."""
    tallies, rows, attempts = Tallies(), {}, []
    for _, content in journal_lines(path):
        if "outcome" in content:
            rows[content["identity"]] = without_document(content)
        else:
            attempts.append(content)
    for row in rows.values():
        count_row(tallies, row)
    for attempt in attempts:
        if attempt["identity"] not in rows:
            count_answer(tallies, attempt["kind"], Paid(**attempt["usage"]))
    return tallies


def former_tallies(folder: JobFolder, number: int) -> Tallies:
    """Of a shard's answers that are kept beside it and serve no more."""
    finished = FinishedShard.read(folder, number)
    if finished is not None:
        used = {row["identity"] for row in _checked_rows(folder.rows(number), finished)}
    else:
        journal = folder.journal(number)
        used = {line["identity"] for _, line in journal_lines(journal)} if journal.exists() else set()
    tallies, rows = Tallies(), {}
    for path in sorted(folder.superseded.glob(f"{number:05d}.*")):
        for _, content in journal_lines(path) if path.suffix == ".journal" else row_lines(path):
            if "outcome" in content and content["identity"] not in used:
                rows[content["identity"]] = without_document(content)
    for row in rows.values():
        count_row(tallies, row)
    return tallies


def tidy(folder: JobFolder, number: int) -> None:
    """Finish what a process that was killed between a shard's sums and its journal's end has left."""
    finished = FinishedShard.read(folder, number)
    assert finished is not None
    used = {row["identity"] for row in _checked_rows(folder.rows(number), finished)}
    settled = {row["identity"] for _, row in journal_lines(folder.journal(number)) if "outcome" in row}
    retire(folder, number, has_unused=not settled <= used)


def retire(folder: JobFolder, number: int, *, has_unused: bool) -> None:
    """Remove a journal, or keep what it has beside the shard's rows: answers to former prompts, which were paid for."""
    journal = folder.journal(number)
    if has_unused:
        folder.superseded.mkdir(exist_ok=True)
        name = f"{number:05d}.{xxhash.xxh3_64_hexdigest(journal.read_bytes())}.journal"
        os.replace(journal, folder.superseded / name)
    else:
        journal.unlink(missing_ok=True)


def row_lines(path: Path) -> Iterator[tuple[Place, dict[str, Any]]]:
    """The rows of a finished shard's file, or of a former one.

    Raises:
        ValueError: a line is damaged.
    """
    offset = 0
    with open(path, "rb") as file:
        for number, line in enumerate(file, start=1):
            try:
                content = orjson.loads(line)
            except orjson.JSONDecodeError as error:
                raise ValueError(f"{path}:{number}: damaged ({error}); restore the file, or delete it") from None
            yield Place(path, offset, len(line) - 1), content
            offset += len(line)


def _checked_rows(path: Path, finished: FinishedShard) -> Iterator[dict[str, Any]]:
    """Rows of a finished file; nothing is given before its checksum is found right."""
    digest = xxhash.xxh3_128()
    with open(path, "rb") as file:
        while piece := file.read(1 << 20):
            digest.update(piece)
        if digest.hexdigest() != finished.checksum:
            raise ValueError(
                f"{path}: damaged, not the bytes that were written; restore it, or delete it and {path.stem}.json to "
                "have the shard made again"
            )
        file.seek(0)
        for line in file:
            yield orjson.loads(line)


def without_document(row: dict[str, Any]) -> dict[str, Any]:
    """What has to be counted."""
    assert row["outcome"] in OUTCOMES
    return {name: value for name, value in row.items() if name != "document"}
