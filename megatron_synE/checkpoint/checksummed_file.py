"""A new file whose checksums are known when it is written: of its parts, and of the whole. Nothing here needs torch."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import xxhash

# The part that was just hashed is still in cache when it is written.
_PIECE_BYTES = 2**24


class ChecksummedFile:
    """Has what `torch.save` asks of a stream; nothing is buffered.

    Args:
        on_written: told after each piece how many bytes it had.
    """

    def __init__(self, path: Path, on_written: Callable[[int], None] = lambda num_bytes: None) -> None:
        self._on_written = on_written
        self._file = open(path, "wb", buffering=0)  # noqa: SIM115 - closed by __exit__
        self._whole = xxhash.xxh3_128()
        self._part = xxhash.xxh3_128()
        self.size_bytes = 0
        self.error: OSError | None = None
        """The system's error; `torch.save` raises its own in its place."""

    def __enter__(self) -> ChecksummedFile:
        return self

    def __exit__(self, *exception: object) -> None:
        self._file.close()

    def write(self, content: Any) -> int:
        """Append bytes, or what gives access to its own."""
        view = memoryview(content).cast("B")
        try:
            for start in range(0, len(view), _PIECE_BYTES):
                piece = view[start : start + _PIECE_BYTES]
                self._whole.update(piece)
                self._part.update(piece)
                num_bytes = len(piece)
                while piece:
                    piece = piece[self._file.write(piece) :]
                self._on_written(num_bytes)
        except OSError as error:
            self.error = self.error or error
            raise
        self.size_bytes += len(view)
        return len(view)

    def flush(self) -> None:
        """Asked for by `torch.save`; `sync` does more."""

    def take_checksum(self) -> str:
        """xxh3_128 of what was written since this was asked last."""
        checksum = self._part.hexdigest()
        self._part.reset()
        return checksum

    def sync(self) -> str:
        """Bring all of it to the disk; xxh3_128 of all that was written."""
        os.fsync(self._file.fileno())
        return self._whole.hexdigest()
