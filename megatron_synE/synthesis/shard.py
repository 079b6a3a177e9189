"""A shard in progress: its journal, and the finished shard that it becomes.

An answer is in the journal before the slot of its request is given away, so that a process killed at any moment has
lost no answer but those in flight; it reaches the disk in batches.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import orjson
import xxhash

from megatron_synE.journal import Journal, Place, journal_lines, read_journal_line
from megatron_synE.synthesis.finished import (
    count_answer,
    count_row,
    journal_tallies,
    retire,
    row_lines,
    without_document,
)
from megatron_synE.synthesis.folder import JobFolder, SnippetShards, durable_file
from megatron_synE.synthesis.request import NOTHING_PAID, Paid, Settings, request_identity
from megatron_synE.synthesis.tally import Tallies
from megatron_synE.synthesis.task import Snippet, Task, Tasks


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
        self._folder, self._shards, self._tasks = folder, shards, tasks
        self._model = settings.model
        self._fingerprints = {task.kind: settings.fingerprint(task) for task in tasks.kinds()}
        self._known: dict[str, tuple[Place, dict[str, Any]]] = {}
        self._attempts: dict[str, tuple[int, Paid]] = {}
        self._places: dict[int, Place] = {}
        self._unused: set[str] = set()
        self._read_former_rows()
        self._journal = Journal(folder.journal(number))
        self._read_journal()

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
        usage = answer.to_json()
        self._journal.append(
            {"identity": row.identity, "kind": row.task.kind, "attempt": row.attempts, "reason": reason, "usage": usage}
        )
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
        self._places[row.index] = self._journal.append(content)
        count_row(self.tallies, content)
        last = answer or NOTHING_PAID
        count_row(self.paid, {**content, "usage": last.to_json(), "attempts": int(answer is not None)})

    def sync(self) -> None:
        """Bring the journal to the disk."""
        self._journal.sync()

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
                    line = _read_row(files[self._places[index].path], self._places[index]) + b"\n"
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
        retire(self._folder, self.number, has_unused=bool(self._unused))
        return True

    def close(self) -> None:
        """Leave the journal as it is."""
        self._journal.close()

    def _read_former_rows(self) -> None:
        """Those of former prompts, and those whose sums are lost."""
        superseded = sorted(self._folder.superseded.glob(f"{self.number:05d}.*"))
        for path in [*superseded, *filter(Path.exists, [self._folder.rows(self.number)])]:
            for place, content in journal_lines(path) if path.suffix == ".journal" else row_lines(path):
                if "outcome" in content:
                    self._known[content["identity"]] = (place, without_document(content))

    def _read_journal(self) -> None:
        for place, content in journal_lines(self._journal.path):
            identity = content["identity"]
            if "outcome" in content:
                self._known[identity] = (place, without_document(content))
                self._unused.add(identity)
            else:
                count, paid = self._attempts.get(identity, (0, NOTHING_PAID))
                self._attempts[identity] = (count + 1, paid.plus(Paid(**content["usage"])))
        self.paid.add(journal_tallies(self._journal.path))


class _NotOurs(Exception):
    """Another process has taken the shard."""


def _read_row(file: BinaryIO, place: Place) -> bytes:
    """The JSON of a row, of a journal or of a file of rows, whose checksum was looked at when it was opened."""
    if place.path.suffix == ".journal" or place.path.parent.name == "journal":
        return read_journal_line(file, place)
    file.seek(place.offset)
    text = file.read(place.num_bytes)
    if len(text) != place.num_bytes:
        raise ValueError(f"{place.path}: changed while it was in use; start again: what is damaged is asked for again")
    return text
