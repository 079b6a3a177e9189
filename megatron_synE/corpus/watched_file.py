"""Whether a file is still the one that was opened: cheap to ask before every use, whatever its size.

Its size, inode and times tell that something happened; a hash of its size and of blocks spread evenly over it tells
whether the content is another. A file of up to 2 MiB is hashed whole.
"""

import logging
import os
from pathlib import Path
from typing import Any, BinaryIO

import xxhash

logger = logging.getLogger(__name__)

SAMPLED_BLOCKS = 32
SAMPLED_BLOCK_BYTES = 64 << 10


class WatchedFile:
    """A file that stands open in this process.

    Args:
        file: opened for reading; it is not needed afterwards.
    """

    def __init__(self, path: Path, file: BinaryIO) -> None:
        self.path = path
        self._status = os.fstat(file.fileno())
        self._times = _times(self._status)
        self.sample = sampled_hash(file)

    @property
    def num_bytes(self) -> int:
        """Size when it was opened."""
        return self._status.st_size

    @property
    def identity(self) -> dict[str, Any]:
        """What a sidecar records of the file; equal for a copy with its times."""
        return {"bytes": self.num_bytes, "mtime_ns": self._status.st_mtime_ns, "sample": self.sample}

    def check_unchanged(self) -> None:
        """Raise ValueError, with the file's name, when what lies under its path is not what was opened.

        A file that was touched, or replaced by an equal one, is only mentioned: the blocks between those sampled may
        differ. What else changes the inode's time (a new owner, a further link) is nothing to speak of.
        """
        try:
            status = os.stat(self.path)
            times = _times(status)
            if times == self._times:
                return
            unchanged = status.st_size == self.num_bytes
            if unchanged:
                with open(self.path, "rb") as file:
                    unchanged = sampled_hash(file) == self.sample
        except OSError as error:
            raise ValueError(f"{self.path}: changed while it was being read: {error.strerror}") from error
        if not unchanged:
            raise ValueError(
                f"{self.path}: changed while it was being read ({status.st_size} bytes, of {self.num_bytes} before); "
                "restore what was opened, or start a run of its own on the new content"
            )
        if (status.st_ino, status.st_mtime_ns) != (self._status.st_ino, self._status.st_mtime_ns):
            logger.warning(
                "%s: was written while it is being read, the same as far as %d blocks of it tell; "
                "tools/verify_corpus.py reads all of it",
                self.path,
                SAMPLED_BLOCKS,
            )
        self._status, self._times = status, times


def sampled_hash(file: BinaryIO) -> str:
    """xxh3_128, in hexadecimal digits, of a file's size and of blocks at even distances, first and last included."""
    num_bytes = os.fstat(file.fileno()).st_size
    digest = xxhash.xxh3_128(num_bytes.to_bytes(8, "little"))
    for number in range(SAMPLED_BLOCKS):
        start = number * SAMPLED_BLOCK_BYTES
        if num_bytes > SAMPLED_BLOCKS * SAMPLED_BLOCK_BYTES:
            start = number * (num_bytes - SAMPLED_BLOCK_BYTES) // (SAMPLED_BLOCKS - 1)
        digest.update(os.pread(file.fileno(), SAMPLED_BLOCK_BYTES, start))
    return digest.hexdigest()


def _times(status: os.stat_result) -> tuple[int, ...]:
    return status.st_size, status.st_ino, status.st_mtime_ns, status.st_ctime_ns
