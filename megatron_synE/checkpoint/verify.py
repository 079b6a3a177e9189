"""Reads every byte of a checkpoint, as no load does: each file's checksum, each chunk's, and the values if asked."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import xxhash

from megatron_synE.checkpoint.contents import Contents, quick_check
from megatron_synE.checkpoint.files import DamagedCheckpoint, check_digest, file_checksum
from megatron_synE.checkpoint.finite import first_non_finite
from megatron_synE.checkpoint.index import Chunk
from megatron_synE.checkpoint.whole_tensors import decode_chunk
from megatron_synE.progress import ProgressBar

READER_THREADS = 4
"""Files read at the same time; each holds one chunk in memory."""


def verify(path: str | Path, *, values: bool = False) -> int:
    """Check all of the checkpoint at `path` (its directory, or the root: then the latest); the bytes read.

    Args:
        values: also unpack every tensor, and look for NaN and infinity.

    Raises:
        ValueError: no checkpoint, or a format this version does not know.
        DamagedCheckpoint: names the file, and the tensor where it lies in one.
    """
    contents = quick_check(path)
    chunks: dict[str, list[tuple[str, Chunk]]] = defaultdict(list)
    for key, stored in contents.tensors.items():
        for chunk in stored.chunks:
            chunks[chunk.file].append((key, chunk))
    names = list(contents.files)
    size_bytes = sum(contents.files[name].size_bytes for name in names)
    with (
        ThreadPoolExecutor(READER_THREADS) as pool,
        ProgressBar(f"reading {contents.directory}", size_bytes, "bytes") as bar,
    ):
        verified = pool.map(lambda name: _verify_file(contents, name, chunks[name], values), names)
        for name, _ in zip(names, verified, strict=True):
            bar.advance(contents.files[name].size_bytes)
    return size_bytes


def _verify_file(contents: Contents, name: str, chunks: list[tuple[str, Chunk]], values: bool) -> None:
    path, listed = contents.directory / name, contents.files[name]
    if not chunks:
        check_digest(path, file_checksum(path), listed.checksum)
        return
    whole = xxhash.xxh3_128()
    for record in _records(contents, name, chunks, values):
        whole.update(record)
    check_digest(path, whole.hexdigest(), listed.checksum)


def _records(contents: Contents, name: str, chunks: list[tuple[str, Chunk]], values: bool) -> Iterator[bytes]:
    """The chunks of a file, in order and without a gap: so every byte is read once."""
    end_bytes = 0
    for key, chunk in sorted(chunks, key=lambda entry: entry[1].start_bytes):
        if chunk.start_bytes != end_bytes:
            raise DamagedCheckpoint(f"{contents.directory / name}: {key} does not begin where the one before it ends")
        record = chunk.read(contents.directory, key)
        if values:
            tensor = decode_chunk(contents.directory, key, contents.tensors[key], chunk, record)
            if tensor.is_floating_point() and first_non_finite({key: tensor}):
                raise DamagedCheckpoint(f"{contents.directory / name}: {key} holds NaN or infinity")
        end_bytes += chunk.length_bytes
        yield record
    if end_bytes != contents.files[name].size_bytes:
        raise DamagedCheckpoint(f"{contents.directory / name}: goes on beyond its last tensor")
