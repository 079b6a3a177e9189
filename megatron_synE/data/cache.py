"""Index arrays on disk: built by one process, mapped by all, found by the content they were made from.

One file per key: 8 bytes magic, u64 length of a JSON header, the header, then the arrays, each at a multiple of 64
bytes. The header repeats the key and the file's size, so a file of another key or a torn one is never read. Files are
written aside and renamed: a crash in the middle of a build leaves only a temporary file, which the next build ignores.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import logging
import os
import struct
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

logger = logging.getLogger(__name__)

MAGIC = b"SYNEIDX1"
ALIGNMENT_BYTES = 64
MAX_HEADER_BYTES = 1 << 20
POLL_SECONDS = 0.05

Arrays = dict[str, np.ndarray]
Key = dict[str, Any]


class IndexCache:
    """Index arrays by key in one folder.

    Args:
        folder: where the files lie; made when the first index is built.
        builder: whether this process builds at once. The others first wait up to `patience_seconds` for the file to
            appear, so that on a file system without locks only one process builds.
    """

    def __init__(self, folder: Path, builder: bool = True, patience_seconds: float = 5.0) -> None:
        self.folder = folder
        self.patience_seconds = 0.0 if builder else patience_seconds

    def get(self, key: Key, build: Callable[[], Arrays]) -> Arrays:
        """The arrays of `key`, memory-mapped read-only; `build` makes them where they are missing.

        `key` is JSON and must name the content that `build` depends on. Raises ValueError when the folder cannot be
        written.
        """
        path = self.folder / f"{key['kind']}-{digest(key)}.index"
        give_up = time.monotonic() + self.patience_seconds
        while (arrays := read_arrays(path, key)) is None and time.monotonic() < give_up:
            time.sleep(POLL_SECONDS)
        if arrays is not None:
            return arrays
        self.patience_seconds = 0.0  # nobody else builds here
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            with locked(path.with_suffix(".lock")):
                if read_arrays(path, key) is None:
                    write_arrays(path, key, build())
        except OSError as error:
            raise ValueError(f"data.cache_dir: cannot write {path}: {error}; name a folder that is writable") from error
        arrays = read_arrays(path, key)
        assert arrays is not None, f"{path} does not hold what was just written"
        return arrays


def digest(content: Any) -> str:
    """32 hexadecimal digits that identify a JSON value."""
    text = json.dumps(content, sort_keys=True, ensure_ascii=False, allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()[:32]


@contextlib.contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold an exclusive lock; where the file system has none, go on without (a double build is only wasted work)."""
    with open(path, "w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX)
        except OSError:
            logger.warning("%s: this file system does not lock; several processes may build the same index", path)
        yield


def write_arrays(path: Path, key: Key, arrays: Arrays) -> None:
    """Write a file of arrays aside, flush it to disk, and rename it to `path`."""
    described: list[dict[str, Any]] = []
    offset = 0
    for name, array in arrays.items():
        offset = aligned(offset)
        described.append({"name": name, "dtype": array.dtype.str, "length": len(array), "offset": offset})
        offset += array.nbytes
    header = json.dumps({"key": key, "arrays": described, "bytes": offset}).encode()
    data_start = aligned(len(MAGIC) + 8 + len(header))
    descriptor, temporary = tempfile.mkstemp(prefix=f"{path.name}.tmp-", dir=path.parent)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(MAGIC + struct.pack("<Q", len(header)) + header)
            for array, entry in zip(arrays.values(), described, strict=True):
                file.seek(data_start + entry["offset"])
                file.write(np.ascontiguousarray(array).data)
            file.truncate(data_start + offset)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(temporary)
        raise


def read_arrays(path: Path, key: Key) -> Arrays | None:
    """The arrays of a complete file with this key, else None."""
    try:
        with open(path, "rb") as file:
            prefix = file.read(len(MAGIC) + 8)
            if len(prefix) < len(MAGIC) + 8 or not prefix.startswith(MAGIC):
                return None
            (header_bytes,) = struct.unpack("<Q", prefix[len(MAGIC) :])
            if header_bytes > MAX_HEADER_BYTES:
                return None
            header = json.loads(file.read(header_bytes))
            data_start = aligned(len(prefix) + header_bytes)
            if header["key"] != key or os.fstat(file.fileno()).st_size != data_start + header["bytes"]:
                return None
            # The base class: indexing a memmap costs Python calls that a plain array does not.
            data = np.asarray(np.memmap(file, np.uint8, mode="r"))[data_start:]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return {
        entry["name"]: np.frombuffer(data, np.dtype(entry["dtype"]), count=entry["length"], offset=entry["offset"])
        for entry in header["arrays"]
    }


def aligned(offset: int) -> int:
    """The next multiple of the alignment."""
    return -(-offset // ALIGNMENT_BYTES) * ALIGNMENT_BYTES
