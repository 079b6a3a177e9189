"""Disk space that is set aside for answers that are paid for while the disk fills up."""

from __future__ import annotations

import fcntl
import os
import secrets
from pathlib import Path

BYTES_PER_REQUEST = 16 << 10
MIN_BYTES, MAX_BYTES = 1 << 20, 256 << 20
SUFFIX = ".new"
"""As of claims in the making: what a killed process leaves is removed with theirs."""


class Reserve:
    """A file of nothing, to be given up for the last answers.

    Args:
        folder: on the disk in question, there already.
        window: most requests in flight.

    Raises:
        OSError: there is no such space.
    """

    def __init__(self, folder: Path, window: int) -> None:
        self._path = folder / f"reserve.{secrets.token_hex(8)}{SUFFIX}"
        num_bytes = min(max(window * BYTES_PER_REQUEST, MIN_BYTES), MAX_BYTES)
        self._descriptor = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644)
        try:
            fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            os.posix_fallocate(self._descriptor, 0, num_bytes)
        except OSError as error:
            self.release()
            space = f"{num_bytes >> 20} MiB for answers in flight"
            raise OSError(error.errno, f"{folder}: no {space}: {os.strerror(error.errno or 0)}") from None

    @property
    def is_there(self) -> bool:
        """Whether it was not given back yet."""
        return self._descriptor >= 0

    def release(self) -> None:
        """Give the space back; again is no harm."""
        if self._descriptor >= 0:
            self._path.unlink(missing_ok=True)
            os.close(self._descriptor)
            self._descriptor = -1
