"""Answers of a model, kept from the moment they are given: a killed evaluation goes on where it was.

`journal.jsonl` in the output folder: a line is a checksum (xxh3_64, 16 digits), a space and a JSON object. The first
says whose answers these are; they serve no other model, tokenizer or setting. Each further line holds the answers of
one batch: the next start makes the same batches of what is left, so that also the last digits are the same.
"""

from __future__ import annotations

import os
import time
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, Any

import orjson
import xxhash

from megatron_synE.config.evaluation_results import JOURNAL_FILE

CHECK_BYTES = 17
SYNC_SECONDS = 5.0
"""A power failure costs the answers of so long."""


class Journal:
    """The answers of one evaluation, by key.

    Args:
        folder: of the evaluation.
        identity: what determines the answers, JSON-able.

    Raises:
        ValueError: the folder has the answers of another model, tokenizer or setting.

    Attributes:
        began: when the evaluation was first started; a later start goes on under the same date.
        num_found: answers of earlier starts.
        num_damaged: lines that were cut or damaged; their requests are made again.
    """

    def __init__(self, folder: Path, identity: Mapping[str, Any]) -> None:
        self.path = folder / JOURNAL_FILE
        self._answers: dict[str, Any] = {}
        self.num_damaged = 0
        lines = self._read() if self.path.exists() else []
        if lines and "identity" in lines[0]:
            self._check(lines[0]["identity"], _as_read(identity))
            self.began = datetime.fromisoformat(lines[0]["began"])
        else:
            self.began, lines = datetime.now(UTC), []
        for line in lines[1:]:
            self._answers.update(line)
        self.num_found = len(self._answers)
        self._file: IO[bytes] = open(self.path, "ab" if lines else "wb", buffering=0)  # noqa: SIM115
        self._synced = 0.0
        if lines:
            self._end_cut_line()
        else:
            self._write({"identity": identity, "began": self.began.isoformat()})

    def get(self, key: str) -> Any:
        """The answer to a request, None where there is none."""
        return self._answers.get(key)

    def add(self, answers: Mapping[str, Any]) -> None:
        """Keep the answers of one batch, JSON-able.

        Raises:
            OSError: they cannot be written.
        """
        self._answers.update(answers)
        self._write(answers)

    def close(self) -> None:
        """Bring all to disk."""
        if not self._file.closed:
            os.fsync(self._file.fileno())
            self._file.close()

    def remove(self) -> None:
        """Once the results are there."""
        self.close()
        self.path.unlink(missing_ok=True)

    def _write(self, content: Mapping[str, Any]) -> None:
        text = orjson.dumps(content)
        line = b"%s %s\n" % (xxhash.xxh3_64_hexdigest(text).encode("ascii"), text)
        try:
            written = self._file.write(line)
            if written != len(line):  # a disk that is filling up takes a part of it
                self._file.write(line[written:])
            if time.monotonic() - self._synced > SYNC_SECONDS:
                os.fsync(self._file.fileno())
                self._synced = time.monotonic()
        except OSError as error:
            raise OSError(error.errno, error.strerror, str(self.path)) from error

    def _read(self) -> list[dict[str, Any]]:
        found = []
        for line in self.path.read_bytes().splitlines():
            text = line[CHECK_BYTES:]
            if xxhash.xxh3_64_hexdigest(text).encode("ascii") == line[: CHECK_BYTES - 1]:
                found.append(orjson.loads(text))
            elif line:
                self.num_damaged += 1
        return found

    def _end_cut_line(self) -> None:
        """What a killed process was writing must not swallow the next line."""
        with open(self.path, "rb") as file:
            file.seek(-1, os.SEEK_END)
            is_cut = file.read(1) != b"\n"
        if is_cut:
            self._file.write(b"\n")

    def _check(self, theirs: dict[str, Any], ours: dict[str, Any]) -> None:
        differing = [name for name in {**theirs, **ours} if theirs.get(name) != ours.get(name)]
        if differing:
            raise ValueError(
                f"{self.path.parent}: holds an evaluation that was begun with another {_told(differing, theirs, ours)}; "
                "choose another --output-dir, or delete this one"
            )


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


def _told(differing: list[str], theirs: Mapping[str, Any], ours: Mapping[str, Any]) -> str:
    name = differing[0]
    return f"{name} ({theirs.get(name)}, not {ours.get(name)})"
