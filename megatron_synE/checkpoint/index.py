"""index.json: where each tensor's chunks lie, and their checksums. Nothing here needs torch.

`{"tensors": {name: {"dtype": …, "shape": […], "chunks": [chunk, …]}}}`, where a chunk is `{"offsets": […],
"shape": […], "file": …, "start_bytes": …, "length_bytes": …, "checksum": …}`: the block of the tensor that begins at
`offsets`, as one `torch.save` record of a file, and xxh3_128 of that record. Format 1 has no checksums.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from megatron_synE.checkpoint.files import (
    INDEX_FILE,
    DamagedCheckpoint,
    FileList,
    check_bytes,
    check_kind,
    field,
    shorten,
)

DTYPE_BYTES = {"float64": 8, "float32": 4, "bfloat16": 2, "float16": 2, "int64": 8, "int32": 4, "int16": 2, "int8": 1,
               "uint8": 1, "bool": 1}  # fmt: skip


@dataclass(frozen=True)
class Chunk:
    """One block of a tensor, and the record that holds it."""

    offsets: tuple[int, ...]
    shape: tuple[int, ...]
    file: str
    start_bytes: int
    length_bytes: int
    checksum: str | None

    def read(self, directory: Path, key: str) -> bytes:
        """The record, compared with its checksum. `key` names the tensor in the error.

        Raises:
            DamagedCheckpoint: it cannot be read, or is not what was written.
        """
        path = directory / self.file
        try:
            with open(path, "rb", buffering=0) as file:
                file.seek(self.start_bytes)
                record = file.read(self.length_bytes)
                while len(record) < self.length_bytes and (more := file.read(self.length_bytes - len(record))):
                    record += more  # Linux reads at most 2 GiB at once
        except OSError as error:
            raise _damaged(f"{path}: ", f"{key} cannot be read ({error.strerror})") from None
        if len(record) < self.length_bytes:
            raise _damaged(f"{path}: ", f"ends within {key}")
        check_bytes(path, record, self.checksum, f"{key}: ")
        return record


@dataclass(frozen=True)
class StoredTensor:
    """One tensor of a checkpoint. Its chunks cover it exactly."""

    dtype: str
    shape: tuple[int, ...]
    chunks: tuple[Chunk, ...]


def read_index(files: FileList) -> dict[str, StoredTensor]:
    """All tensors of a checkpoint by name.

    Raises:
        DamagedCheckpoint: index.json has changed, or what it says cannot be: names the tensor and the field.
    """
    path = files.directory / INDEX_FILE
    tensors = field(files.read_json(INDEX_FILE), "tensors", dict, f"{path}: ")
    if not tensors:
        raise DamagedCheckpoint(f"{path}: tensors is empty; use another checkpoint")
    return {key: _tensor(files, f"{path}: {shorten(key)}: ", entry) for key, entry in tensors.items()}


def _tensor(files: FileList, where: str, entry: Any) -> StoredTensor:
    if not isinstance(entry, dict):
        raise _damaged(where, f"{shorten(entry)} is no object")
    dtype = field(entry, "dtype", str, where)
    if dtype not in DTYPE_BYTES:
        raise _damaged(where, f"dtype {shorten(dtype)} is none that is stored")
    shape = _sizes(entry, "shape", where)
    listed = field(entry, "chunks", list, where)
    if not listed:
        raise _damaged(where, "chunks is empty")
    chunks = tuple(_chunk(files, f"{where}chunk {number}: ", item, dtype) for number, item in enumerate(listed))
    _check_cover(where, shape, chunks)
    return StoredTensor(dtype, shape, chunks)


def _chunk(files: FileList, where: str, entry: Any, dtype: str) -> Chunk:
    if not isinstance(entry, dict):
        raise _damaged(where, f"{shorten(entry)} is no object")
    chunk = Chunk(
        offsets=_sizes(entry, "offsets", where),
        shape=_sizes(entry, "shape", where),
        file=field(entry, "file", str, where),
        start_bytes=field(entry, "start_bytes", int, where),
        length_bytes=field(entry, "length_bytes", int, where),
        checksum=field(entry, "checksum", str, where) if files.has_checksums else None,
    )
    if Path(chunk.file).name != chunk.file or chunk.file not in files:
        raise _damaged(where, f"file {shorten(chunk.file)} is not one of the checkpoint's")
    if chunk.start_bytes + chunk.length_bytes > files[chunk.file].size_bytes:
        raise _damaged(where, f"lies beyond the end of {chunk.file}")
    if math.prod(chunk.shape) * DTYPE_BYTES[dtype] > chunk.length_bytes:
        raise _damaged(where, f"shape {list(chunk.shape)} of {dtype} is more than length_bytes {chunk.length_bytes}")
    return chunk


def _sizes(entry: dict[str, Any], name: str, where: str) -> tuple[int, ...]:
    sizes = field(entry, name, list, where)
    return tuple(check_kind(size, f"an entry of {name}", int, where) for size in sizes)


def _check_cover(where: str, shape: Sequence[int], chunks: Sequence[Chunk]) -> None:
    """Within the tensor, apart from each other, and as many elements: then every element lies in one chunk."""
    for number, chunk in enumerate(chunks):
        if not len(chunk.offsets) == len(chunk.shape) == len(shape):
            raise _damaged(where, f"chunk {number} has not {len(shape)} dimensions")
        if any(start + size > limit for start, size, limit in zip(chunk.offsets, chunk.shape, shape, strict=True)):
            raise _damaged(where, f"chunk {number} reaches beyond the shape {list(shape)}")
    if sum(math.prod(chunk.shape) for chunk in chunks) != math.prod(shape):
        raise _damaged(where, "its chunks do not cover it exactly")
    if not shape:
        return
    open_chunks: list[Chunk] = []
    for chunk in sorted(chunks, key=lambda chunk: chunk.offsets):
        open_chunks = [other for other in open_chunks if other.offsets[0] + other.shape[0] > chunk.offsets[0]]
        if any(_overlap(chunk, other) for other in open_chunks):
            raise _damaged(where, "two of its chunks overlap")
        open_chunks.append(chunk)


def _overlap(one: Chunk, two: Chunk) -> bool:
    return all(
        max(a, b) < min(a + a_size, b + b_size)
        for a, a_size, b, b_size in zip(one.offsets, one.shape, two.offsets, two.shape, strict=True)
    )


def _damaged(where: str, problem: str) -> DamagedCheckpoint:
    return DamagedCheckpoint(f"{where}{problem}; the checkpoint is damaged, use another one")
