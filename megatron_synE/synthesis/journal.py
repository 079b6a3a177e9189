"""The journal of a shard, and the finished shard that it becomes.

A line of the journal is an xxh3_64 of the rest of the line, a space, and JSON: a snippet's row, or an answer that was
no use (``attempt``). It is written before the slot of its request is given away, so that a process killed at any
moment has lost no answer but those in flight; it reaches the disk in batches. A line that is cut or damaged is none.

A row: ``id`` of the snippet, ``identity`` of the request, ``kind``, ``outcome`` (accepted, rejected, failed),
``reason``, ``document`` where accepted, ``usage`` over all its answers, ``model``, ``attempts`` (answers).
"""

from __future__ import annotations

import errno
import hashlib
import logging
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import orjson
import xxhash

from megatron_synE.config.json_fields import JsonFields
from megatron_synE.config.synthesis import SamplingConfig
from megatron_synE.synthesis.folder import JobFolder, SnippetShards, durable_file
from megatron_synE.synthesis.tally import OUTCOMES, Tallies
from megatron_synE.synthesis.task import Snippet, Task, Tasks

logger = logging.getLogger(__name__)

CHECK_BYTES = 17
"""Checksum and space in front of a line's JSON."""
SUMS_REMEDY = "restore it, or delete it to have the shard's rows counted again"
DISK_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


class DiskFull(OSError):
    """A line that could not be written; what was in the journal is still there."""


@dataclass(frozen=True)
class Settings:
    """What makes a request another request, beside the snippet and its prompt."""

    model: str
    sampling: SamplingConfig

    def fingerprint(self, task: Task) -> str:
        """Of these and the task's prompt, hexadecimal."""
        sampling = {name: getattr(self.sampling, name) for name in self.sampling.__dataclass_fields__}
        parts = [task.kind, task.fingerprint, self.model, sampling]
        return hashlib.blake2b(orjson.dumps(parts, option=orjson.OPT_SORT_KEYS), digest_size=16).hexdigest()


def request_identity(snippet: Snippet, fingerprint: str) -> str:
    """Of a snippet and ``Settings.fingerprint``: 32 hexadecimal digits."""
    text = f"{fingerprint}\0{snippet.id}\0{snippet.text}"
    return hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=16).hexdigest()


def request_seed(identity: str, attempt: int) -> int:
    """What a request is sent with, in [0, 2^31); another one for each attempt.

    Of the identity, in which the job's seed is: with one seed for all, equal prompts would have equal answers, and a
    small model would draw nearly the same for others.
    """
    return (int(identity[:8], 16) + attempt) % 2**31


class _Place(NamedTuple):
    """Where a row's JSON lies."""

    path: Path
    offset: int
    num_bytes: int


class Paid(NamedTuple):
    """Tokens of one or more answers."""

    prompt_tokens: int
    completion_tokens: int

    def plus(self, other: Paid) -> Paid:
        """Of both."""
        return Paid(self.prompt_tokens + other.prompt_tokens, self.completion_tokens + other.completion_tokens)

    def to_json(self) -> dict[str, int]:
        """As a row has it."""
        return {"prompt_tokens": self.prompt_tokens, "completion_tokens": self.completion_tokens}


NOTHING_PAID = Paid(0, 0)


@dataclass(slots=True)
class Pending:
    """A snippet that has no row yet."""

    shard: Shard
    index: int
    """Of the row in its shard."""
    snippet: Snippet
    task: Task
    identity: str
    attempts: int = 0
    """Answers so far, none of use."""
    paid: Paid = NOTHING_PAID
    """For those."""
    tries: int = 0
    """Requests since the last answer that failed."""


class Shard:
    """A shard in progress; this process has claimed it.

    Args:
        settings: those in force.

    Raises:
        ValueError: its snippets or its journal cannot be read.
    """

    def __init__(self, folder: JobFolder, shards: SnippetShards, number: int, settings: Settings, tasks: Tasks) -> None:
        self.number = number
        self.num_rows = shards.num_rows(number)
        self.tallies = Tallies()
        """Of the rows that it has."""
        self.paid = Tallies()
        """Of all answers in its journal, those of no use and those to former prompts among them."""
        self._descriptor = -1
        self._folder, self._shards, self._tasks = folder, shards, tasks
        self._model = settings.model
        self._fingerprints = {task.kind: settings.fingerprint(task) for task in tasks.kinds()}
        self._known: dict[str, tuple[_Place, dict[str, Any]]] = {}
        self._attempts: dict[str, tuple[int, Paid]] = {}
        self._places: dict[int, _Place] = {}
        self._journal = folder.journal(number)
        self._unused: set[str] = set()
        self._read_former_rows()
        self._open_journal()

    def pending(self) -> Iterator[Pending]:
        """The snippets that are still to be asked about; those with a row are counted on the way."""
        for index, snippet in enumerate(self._shards.read(self.number)):
            task = self._tasks.of(snippet)
            identity = request_identity(snippet, self._fingerprints[task.kind])
            known = self._known.get(identity)
            if known is not None:
                self._places[index] = known[0]
                self._unused.discard(identity)
                count_row(self.tallies, known[1])
                continue
            yield Pending(self, index, snippet, task, identity, *self._attempts.get(identity, (0, NOTHING_PAID)))
        self._known.clear()

    @property
    def is_complete(self) -> bool:
        """Whether every snippet has its row."""
        return len(self._places) == self.num_rows

    def record_attempt(self, row: Pending, answer: Paid, reason: str) -> None:
        """An answer that was no use; it is among those of `row` already.

        Raises:
            DiskFull: it could not be written.
        """
        self._append({"identity": row.identity, "kind": row.task.kind, "attempt": row.attempts, "reason": reason,
                      "usage": answer.to_json()})  # fmt: skip
        count_answer(self.paid, row.task.kind, answer)

    def settle(
        self, row: Pending, answer: Paid | None, outcome: str, reason: str, document: Mapping[str, Any] | None = None
    ) -> None:
        """The end of a snippet, by an answer, which is among those of `row` already, or without one.

        Raises:
            DiskFull: it could not be written.
        """
        content = {"id": row.snippet.id, "identity": row.identity, "kind": row.task.kind, "outcome": outcome,
                   "reason": reason, "usage": row.paid.to_json(), "model": self._model,
                   "attempts": row.attempts}  # fmt: skip
        if document is not None:
            content["document"] = document
        self._places[row.index] = self._append(content)
        count_row(self.tallies, content)
        last = answer or NOTHING_PAID
        count_row(self.paid, {**content, "usage": last.to_json(), "attempts": int(answer is not None)})

    def sync(self) -> None:
        """Bring the journal to the disk."""
        os.fsync(self._descriptor)

    def commit(self, still_ours: Callable[[], bool]) -> bool:
        """Put the finished shard in place; may run in a thread of its own.

        Args:
            still_ours: asked before the first rename.

        Returns:
            whether it was still ours.

        Raises:
            ValueError: what lies in the journal is not what was written.
        """
        assert self.is_complete
        digest = xxhash.xxh3_128()
        files = {path: open(path, "rb") for path in {place.path for place in self._places.values()}}  # noqa: SIM115
        try:
            with durable_file(self._folder.rows(self.number)) as out:
                for index in range(self.num_rows):
                    line = _read_place(files[self._places[index].path], self._places[index]) + b"\n"
                    digest.update(line)
                    out.write(line)
                if not still_ours():
                    raise _NotOurs
        except _NotOurs:
            return False
        finally:
            for file in files.values():
                file.close()
        sums = {
            "num_rows": self.num_rows,
            "checksum": digest.hexdigest(),
            "fingerprints": {kind: self._fingerprints[kind] for kind in sorted(self.tallies)},
            "tallies": self.tallies.to_json(),
        }
        with durable_file(self._folder.sums(self.number)) as out:
            out.write(orjson.dumps(sums, option=orjson.OPT_INDENT_2) + b"\n")
        _retire(self._folder, self.number, has_unused=bool(self._unused))
        return True

    def close(self) -> None:
        """Leave the journal as it is."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

    def _read_former_rows(self) -> None:
        """Those of former prompts, and those whose sums are lost."""
        superseded = sorted(self._folder.superseded.glob(f"{self.number:05d}.*"))
        for path in [*superseded, *filter(Path.exists, [self._folder.rows(self.number)])]:
            for place, content in journal_lines(path) if path.suffix == ".journal" else _plain_lines(path):
                if "outcome" in content:
                    self._known[content["identity"]] = (place, _without_document(content))

    def _open_journal(self) -> None:
        self._journal.parent.mkdir(parents=True, exist_ok=True)
        self._descriptor = os.open(self._journal, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o644)
        for place, content in journal_lines(self._journal):
            identity = content["identity"]
            if "outcome" in content:
                self._known[identity] = (place, _without_document(content))
                self._unused.add(identity)
            else:
                count, paid = self._attempts.get(identity, (0, NOTHING_PAID))
                self._attempts[identity] = (count + 1, paid.plus(Paid(**content["usage"])))
        self.paid.add(journal_tallies(self._journal))
        self._num_bytes = os.fstat(self._descriptor).st_size
        if self._num_bytes and os.pread(self._descriptor, 1, self._num_bytes - 1) != b"\n":
            self._write(b"\n")

    def _append(self, content: Mapping[str, Any]) -> _Place:
        text = orjson.dumps(content)
        line = b"%s %s\n" % (xxhash.xxh3_64_hexdigest(text).encode("ascii"), text)
        offset = self._num_bytes
        self._write(line)
        return _Place(self._journal, offset + CHECK_BYTES, len(text))

    def _write(self, line: bytes) -> None:
        try:
            written = os.write(self._descriptor, line)
        except OSError as error:
            if error.errno in DISK_FULL:
                raise DiskFull(error.errno, os.strerror(error.errno), str(self._journal)) from None
            raise
        if written < len(line):
            os.ftruncate(self._descriptor, self._num_bytes)
            raise DiskFull(errno.ENOSPC, os.strerror(errno.ENOSPC), str(self._journal))
        self._num_bytes += written


class _NotOurs(Exception):
    """Another process has taken the shard."""


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
            rows[content["identity"]] = _without_document(content)
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
        for _, content in journal_lines(path) if path.suffix == ".journal" else _plain_lines(path):
            if "outcome" in content and content["identity"] not in used:
                rows[content["identity"]] = _without_document(content)
    for row in rows.values():
        count_row(tallies, row)
    return tallies


def tidy(folder: JobFolder, number: int) -> None:
    """Finish what a process that was killed between a shard's sums and its journal's end has left."""
    finished = FinishedShard.read(folder, number)
    assert finished is not None
    used = {row["identity"] for row in _checked_rows(folder.rows(number), finished)}
    settled = {row["identity"] for _, row in journal_lines(folder.journal(number)) if "outcome" in row}
    _retire(folder, number, has_unused=not settled <= used)


def _retire(folder: JobFolder, number: int, *, has_unused: bool) -> None:
    """Remove a journal, or keep what it has beside the shard's rows: answers to former prompts, which were paid for."""
    journal = folder.journal(number)
    if has_unused:
        folder.superseded.mkdir(exist_ok=True)
        name = f"{number:05d}.{xxhash.xxh3_64_hexdigest(journal.read_bytes())}.journal"
        os.replace(journal, folder.superseded / name)
    else:
        journal.unlink(missing_ok=True)


def journal_lines(path: Path) -> Iterator[tuple[_Place, dict[str, Any]]]:
    """The sound lines of a journal. A cut last line is what a killed process leaves; others are warned about."""
    offset = num_bad = 0
    with open(path, "rb") as file:
        for line in file:
            text = line[CHECK_BYTES:-1]
            start = offset + CHECK_BYTES
            offset += len(line)
            if line.endswith(b"\n") and _is_sound(line[: CHECK_BYTES - 1], text):
                yield _Place(path, start, len(text)), orjson.loads(text)
            elif line.endswith(b"\n") and line != b"\n":
                num_bad += 1
    if num_bad:
        logger.warning("%s: %d lines are cut or damaged; their requests are made again", path, num_bad)


def _is_sound(check: bytes, text: bytes) -> bool:
    return xxhash.xxh3_64_hexdigest(text).encode("ascii") == check


def _plain_lines(path: Path) -> Iterator[tuple[_Place, dict[str, Any]]]:
    offset = 0
    with open(path, "rb") as file:
        for number, line in enumerate(file, start=1):
            try:
                content = orjson.loads(line)
            except orjson.JSONDecodeError as error:
                raise ValueError(f"{path}:{number}: damaged ({error}); restore the file, or delete it") from None
            yield _Place(path, offset, len(line) - 1), content
            offset += len(line)


def _read_place(file: Any, place: _Place) -> bytes:
    """The JSON of a row, once it is known to be what was written."""
    is_journal = place.path.suffix == ".journal" or place.path.parent.name == "journal"
    start = place.offset - (CHECK_BYTES if is_journal else 0)
    file.seek(start)
    line: bytes = file.read(place.num_bytes + place.offset - start)
    text = line[place.offset - start :]
    if len(text) != place.num_bytes or (is_journal and not _is_sound(line[: CHECK_BYTES - 1], text)):
        raise ValueError(f"{place.path}: changed while it was in use; start again: what is damaged is asked for again")
    return text


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


def _without_document(row: dict[str, Any]) -> dict[str, Any]:
    """What has to be counted."""
    assert row["outcome"] in OUTCOMES
    return {name: value for name, value in row.items() if name != "document"}
