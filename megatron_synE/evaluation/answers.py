"""A model's answers, kept from the moment they are given: a killed evaluation goes on where it was.

The first line of the journal says whose answers these are; they serve no other model, tokenizer or setting. Each
further line holds answers that were given together.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import orjson
import xxhash

from megatron_synE.config.evaluation_results import JOURNAL_FILE
from megatron_synE.journal import Journal, journal_lines

SYNC_SECONDS = 5.0
"""A power failure costs the answers of so long."""


class AnswerJournal:
    """The answers of one evaluation, by key.

    Args:
        folder: of the evaluation.
        identity: what determines the answers, JSON-able.

    Raises:
        ValueError: the folder has the answers of another model, tokenizer or setting.

    Attributes:
        began: when the evaluation was first started, UTC.
        num_found: answers of earlier starts.
    """

    def __init__(self, folder: Path, identity: Mapping[str, Any]) -> None:
        self._path = folder / JOURNAL_FILE
        self._answers: dict[str, Any] = {}
        self.began = datetime.now(UTC)
        lines = [content for _, content in journal_lines(self._path)] if self._path.exists() else []
        if lines:
            self._check(lines[0], _as_read(identity))
            self.began = datetime.fromisoformat(lines[0]["began"])
        for line in lines[1:]:
            self._answers.update(line)
        self.num_found = len(self._answers)
        self._journal, self._synced_at = Journal(self._path), 0.0
        if not lines:
            self._append({"identity": identity, "began": self.began.isoformat()})

    def get(self, key: str) -> Any:
        """The answer to a request, None where there is none."""
        return self._answers.get(key)

    def add(self, answers: Mapping[str, Any]) -> None:
        """Keep answers, JSON-able; all of them or none are there after a kill.

        Raises:
            DiskFull: they could not be written.
        """
        self._answers.update(answers)
        self._append(answers)

    def close(self) -> None:
        """Leave it for the next start."""
        self._journal.close()

    def remove(self) -> None:
        """Once the results are there."""
        self._journal.close()
        self._path.unlink(missing_ok=True)

    def _append(self, content: Mapping[str, Any]) -> None:
        self._journal.append(content)
        if time.monotonic() - self._synced_at > SYNC_SECONDS:
            self._journal.sync()
            self._synced_at = time.monotonic()

    def _check(self, first: dict[str, Any], ours: dict[str, Any]) -> None:
        remedy = "choose another --output-dir, or delete this one"
        if "identity" not in first:
            raise ValueError(f"{self._path}: the line that says whose answers these are is damaged; {remedy}")
        difference = first_difference(first["identity"], ours)
        if difference:
            folder = self._path.parent
            raise ValueError(f"{folder}: holds an evaluation that was begun with another {difference}; {remedy}")


def first_difference(theirs: Mapping[str, Any], ours: Mapping[str, Any], place: str = "") -> str:
    """Where two JSON objects differ: `model.dtype (bf16, not fp32)`; empty where they do not."""
    for name in {**theirs, **ours}:
        their, own, path = theirs.get(name), ours.get(name), f"{place}{name}"
        if isinstance(their, Mapping) and isinstance(own, Mapping):
            if inner := first_difference(their, own, f"{path}."):
                return inner
        elif their != own:
            return f"{path} ({their}, not {own})"
    return ""


def key_of(kind: str, ids: Sequence[Sequence[int]], *settings: Any) -> str:
    """A request's key: equal ones are answered once.

    Args:
        kind: what is asked.
        ids: its token ids, in parts whose boundaries count.
        settings: JSON-able.
    """
    digest = xxhash.xxh3_128(orjson.dumps([kind, [len(part) for part in ids], settings]))
    for part in ids:
        digest.update(orjson.dumps(part))
    return digest.hexdigest()


def _as_read(content: Mapping[str, Any]) -> dict[str, Any]:
    return dict(orjson.loads(orjson.dumps(content)))
