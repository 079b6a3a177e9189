"""How far a job is that several processes share without talking to each other: each notes in a file how far it is.

A note is 8 bytes, the share of a part that is done (float64). Notes of an earlier, killed job are older than the start
of this one, by the clock of the file system that holds both, and do not count.
"""

import os
import struct
import time
from collections.abc import Callable
from pathlib import Path

SHARE = struct.Struct("<d")
INTERVAL_SECONDS = 0.5
"""Least time between two notes, and between two looks at those of the others."""


class SharedProgress:
    """The notes of one job.

    Args:
        directory: of the job's parts.
        part_path: the file that holds a finished part.
        num_documents: of each part.
    """

    def __init__(self, directory: Path, part_path: Callable[[int], Path], num_documents: list[int]) -> None:
        self._part_path, self._num_documents = part_path, num_documents
        self._unfinished = set(range(len(num_documents)))
        mark = directory / f"part-start-{os.getpid()}"
        mark.write_bytes(b"")
        self._start_ns = mark.stat().st_mtime_ns
        mark.unlink()
        self._next_note_seconds = self._next_look_seconds = time.monotonic()
        self._documents_done = 0.0

    def note(self, part: int, share: float) -> None:
        """Tell the others that so much of a part, 0 to 1, is done."""
        if time.monotonic() < self._next_note_seconds:
            return
        self._next_note_seconds = time.monotonic() + INTERVAL_SECONDS
        descriptor = os.open(self._note_path(part), os.O_WRONLY | os.O_CREAT, 0o666)
        try:
            os.pwrite(descriptor, SHARE.pack(share), 0)
        finally:
            os.close(descriptor)

    def documents_done(self) -> float:
        """Documents of the finished parts, and of what all processes have noted; never less than a call before said."""
        if time.monotonic() >= self._next_look_seconds:
            self._next_look_seconds = time.monotonic() + INTERVAL_SECONDS
            self._unfinished = {part for part in self._unfinished if not self._part_path(part).exists()}
            finished = sum(self._num_documents) - sum(self._num_documents[part] for part in self._unfinished)
            noted = sum(self._num_documents[part] * self._noted_share(part) for part in self._unfinished)
            self._documents_done = max(self._documents_done, finished + noted)
        return self._documents_done

    def _noted_share(self, part: int) -> float:
        try:
            with open(self._note_path(part), "rb") as file:
                content = file.read()
                is_old = os.fstat(file.fileno()).st_mtime_ns < self._start_ns
        except FileNotFoundError:
            return 0.0
        return SHARE.unpack(content)[0] if len(content) == SHARE.size and not is_old else 0.0

    def _note_path(self, part: int) -> Path:
        return self._part_path(part).with_suffix(".progress")
