"""Index arrays on disk: built by one process, mapped by all, found by the content they were made from.

One file per key: 8 bytes magic, 16 bytes checksum (xxh3_128) of all that follows, u64 length of a JSON header, the
header, then the arrays, each at a multiple of 64 bytes. The header repeats the key. The checksum is verified whenever a
file is opened: a damaged, torn or foreign one is never read, but said and built again. Files are written aside and
renamed: a crash in the middle of a build leaves only a temporary file, which the next build ignores.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import io
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
import xxhash

from megatron_synE.data import native

logger = logging.getLogger(__name__)

MAGIC = b"SYNEIDX2"
MAGIC_WITHOUT_CHECKSUM = b"SYNEIDX1"
CHECKSUM_BYTES = 16
START_BYTES = len(MAGIC) + CHECKSUM_BYTES
LENGTH = struct.Struct("<Q")
ALIGNMENT_BYTES = 64
HASH_PIECE_BYTES = 1 << 20
POLL_SECONDS = 0.05

Arrays = dict[str, np.ndarray]
Key = dict[str, Any]


class DamagedIndex(ValueError):
    """A file of the cache that does not hold what was written, or not what is looked for."""


class IndexCache:
    """Index arrays by key in one folder.

    Args:
        folder: where the files lie; made when the first index is built.
        builder: whether this process builds at once. The others first wait up to `patience_seconds` for the file to
            appear, so that on a file system without locks only one process builds.
        keep: whether what is built is written; otherwise it is in memory only, and nothing on disk is touched. A
            folder in which it could not be written is refused all the same.
    """

    def __init__(
        self, folder: Path, builder: bool = True, patience_seconds: float = 5.0, *, keep: bool = True
    ) -> None:
        self.folder, self.keep = folder, keep
        self.patience_seconds = 0.0 if builder else patience_seconds

    def get(self, key: Key, build: Callable[[], Arrays]) -> Arrays:
        """The arrays of `key`, memory-mapped read-only; `build` makes them where they are missing.

        `key` is JSON and must name the content that `build` depends on. Raises ValueError when the folder cannot be
        written.
        """
        path = self.folder / f"{key['kind']}-{digest(key)}.index"
        give_up = time.monotonic() + self.patience_seconds
        while (arrays := undamaged_arrays(path, key)) is None and time.monotonic() < give_up:
            time.sleep(POLL_SECONDS)
        if arrays is not None:
            return arrays
        if not self.keep:
            self._check_writable(path)
            return build()
        self.patience_seconds = 0.0  # nobody else builds here
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            with locked(path.with_suffix(".lock")):
                try:
                    arrays = read_arrays(path, key)
                except DamagedIndex as damage:
                    logger.warning("%s; it is built again", damage)
                if arrays is None:
                    write_arrays(path, key, build())
                    arrays = read_arrays(path, key)
        except DamagedIndex as damage:
            raise ValueError(f"data.cache_dir: {damage}, just after it was written; look at this disk") from None
        except OSError as error:
            raise ValueError(f"data.cache_dir: cannot write {path}: {error}; name a folder that is writable") from error
        assert arrays is not None, f"{path} is gone again"
        return arrays

    def _check_writable(self, path: Path) -> None:
        """Raise ValueError where a run could not keep `path`; makes nothing."""
        folder = self.folder.absolute()
        existing = next(parent for parent in (folder, *folder.parents) if parent.exists())
        if not (existing.is_dir() and os.access(existing, os.W_OK | os.X_OK)):
            raise ValueError(f"data.cache_dir: cannot write {path}: {existing}; name a folder that is writable")


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
    checksum = xxhash.xxh3_128()
    descriptor, temporary = tempfile.mkstemp(prefix=f"{path.name}.tmp-", dir=path.parent)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(MAGIC + bytes(CHECKSUM_BYTES))
            for piece in content_pieces(key, arrays):
                file.write(piece)
                checksum.update(piece)
            file.seek(len(MAGIC))
            file.write(checksum.digest())
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(temporary)
        raise


def content_pieces(key: Key, arrays: Arrays) -> Iterator[bytes | memoryview]:
    """What a file holds after its checksum."""
    described: list[dict[str, Any]] = []
    offset = 0
    for name, array in arrays.items():
        offset = aligned(offset)
        described.append({"name": name, "dtype": array.dtype.str, "length": len(array), "offset": offset})
        offset += array.nbytes
    header = json.dumps({"key": key, "arrays": described}).encode()
    yield LENGTH.pack(len(header)) + header
    position = START_BYTES + LENGTH.size + len(header)
    for array in arrays.values():
        yield bytes(aligned(position) - position)
        yield np.ascontiguousarray(array).view(np.uint8).data
        position = aligned(position) + array.nbytes


def read_arrays(path: Path, key: Key) -> Arrays | None:
    """The arrays of a file with this key, memory-mapped read-only; None where there is none, or one without a checksum.

    Raises: DamagedIndex where the file is not what was written under this key.
    """
    try:
        with open(path, "rb", buffering=0) as file:
            start = file.read(START_BYTES)
            if start.startswith(MAGIC_WITHOUT_CHECKSUM):
                return None
            if not start.startswith(MAGIC) or start[len(MAGIC) :] != checksum_of_rest(file):
                raise DamagedIndex(f"{path}: damaged: its content does not have the checksum that was written")
            file.seek(START_BYTES)
            (header_bytes,) = LENGTH.unpack(file.read(LENGTH.size))
            header = json.loads(file.read(header_bytes))
            if header["key"] != key:
                raise DamagedIndex(f"{path}: holds the index of something else")
            mapped = np.memmap(file, np.uint8, mode="r")
            native.watch(mapped, path)
            # The base class: indexing a memmap costs Python calls that a plain array does not.
            data = np.asarray(mapped)[aligned(START_BYTES + LENGTH.size + header_bytes) :]
            return {
                entry["name"]: np.frombuffer(data, np.dtype(entry["dtype"]), entry["length"], entry["offset"])
                for entry in header["arrays"]
            }
    except FileNotFoundError:
        return None
    except DamagedIndex:
        raise
    except (OSError, ValueError, KeyError, TypeError, struct.error) as error:
        raise DamagedIndex(f"{path}: damaged: {error}") from error


def undamaged_arrays(path: Path, key: Key) -> Arrays | None:
    """The same, and None where the file is damaged."""
    try:
        return read_arrays(path, key)
    except DamagedIndex:
        return None


def checksum_of_rest(file: io.FileIO) -> bytes:
    """xxh3_128 of what follows in a file, read in pieces: mapped pages would count as this process's memory."""
    checksum, piece = xxhash.xxh3_128(), bytearray(HASH_PIECE_BYTES)
    view = memoryview(piece)
    while count := file.readinto(piece):
        checksum.update(view[:count])
    return checksum.digest()


def aligned(offset: int) -> int:
    """The next multiple of the alignment."""
    return -(-offset // ALIGNMENT_BYTES) * ALIGNMENT_BYTES
