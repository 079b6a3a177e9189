"""Journals: JSON lines to which a process appends until it ends or is killed, and which it reads when it is back.

A line is an xxh3_64 of the rest of the line, a space, and JSON. A line that is cut or damaged is none. What was
appended survives the process at once, and the machine from the next `sync` on.
"""

from __future__ import annotations

import errno
import logging
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import orjson
import xxhash

logger = logging.getLogger(__name__)

CHECK_BYTES = 17
"""Checksum and space in front of a line's JSON."""
DISK_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


class DiskFull(OSError):
    """A line that could not be written; what was in the journal is still there."""


class Place(NamedTuple):
    """Where a line's JSON lies."""

    path: Path
    offset: int
    num_bytes: int


class Journal:
    """A journal that is appended to; its folder is made. One process at a time: the caller sees to that."""

    def __init__(self, path: Path) -> None:
        self.path = path
        path.parent.mkdir(parents=True, exist_ok=True)
        self._descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o644)
        self._num_bytes = os.fstat(self._descriptor).st_size
        self._is_cut = self._num_bytes > 0 and os.pread(self._descriptor, 1, self._num_bytes - 1) != b"\n"

    def append(self, content: Mapping[str, Any]) -> Place:
        """Write a line.

        Raises:
            DiskFull: it could not be written.
        """
        if self._is_cut:
            self._write(b"\n")
            self._is_cut = False
        text = orjson.dumps(content)
        offset = self._num_bytes
        self._write(b"%s %s\n" % (xxhash.xxh3_64_hexdigest(text).encode("ascii"), text))
        return Place(self.path, offset + CHECK_BYTES, len(text))

    def sync(self) -> None:
        """Bring it to the disk."""
        os.fsync(self._descriptor)

    def close(self) -> None:
        """Leave it as it is."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

    def _write(self, line: bytes) -> None:
        try:
            written = os.write(self._descriptor, line)
        except OSError as error:
            if error.errno in DISK_FULL:
                raise DiskFull(error.errno, os.strerror(error.errno), str(self.path)) from None
            raise
        if written < len(line):
            os.ftruncate(self._descriptor, self._num_bytes)
            raise DiskFull(errno.ENOSPC, os.strerror(errno.ENOSPC), str(self.path))
        self._num_bytes += written


def journal_lines(path: Path) -> Iterator[tuple[Place, dict[str, Any]]]:
    """The sound lines. A cut last line is what a killed process leaves; others are warned about."""
    offset = num_bad = 0
    with open(path, "rb") as file:
        for line in file:
            text = line[CHECK_BYTES:-1]
            start = offset + CHECK_BYTES
            offset += len(line)
            if line.endswith(b"\n") and _is_sound(line[: CHECK_BYTES - 1], text):
                yield Place(path, start, len(text)), orjson.loads(text)
            elif line.endswith(b"\n") and line != b"\n":
                num_bad += 1
    if num_bad:
        logger.warning("%s: %d lines are cut or damaged; their requests are made again", path, num_bad)


def read_journal_line(file: BinaryIO, place: Place) -> bytes:
    """The JSON of a line.

    Raises:
        ValueError: it is not what was written.
    """
    file.seek(place.offset - CHECK_BYTES)
    line = file.read(CHECK_BYTES + place.num_bytes)
    text = line[CHECK_BYTES:]
    if len(text) != place.num_bytes or not _is_sound(line[: CHECK_BYTES - 1], text):
        raise ValueError(f"{place.path}: changed while it was in use; start again: what is damaged is asked for again")
    return text


def _is_sound(check: bytes, text: bytes) -> bool:
    return xxhash.xxh3_64_hexdigest(text).encode("ascii") == check
