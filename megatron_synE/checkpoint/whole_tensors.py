"""Reads whole tensors out of a checkpoint, one at a time, without a model or process groups."""

from __future__ import annotations

import io
from collections.abc import Iterator
from pathlib import Path

import torch

from megatron_synE.checkpoint.contents import quick_check
from megatron_synE.checkpoint.files import DamagedCheckpoint
from megatron_synE.checkpoint.index import Chunk, StoredTensor


class WholeTensors:
    """The tensors of one checkpoint by name. Only the tensor being read is in memory.

    Raises:
        ValueError: there is no checkpoint at `path`.
        DamagedCheckpoint: it is damaged.
    """

    def __init__(self, path: str | Path) -> None:
        contents = quick_check(path)
        self.directory = contents.directory
        self._tensors = contents.tensors

    def __iter__(self) -> Iterator[str]:
        return iter(self._tensors)

    def __contains__(self, key: str) -> bool:
        return key in self._tensors

    def shape(self, key: str) -> tuple[int, ...]:
        """Shape of the whole tensor."""
        return self._tensors[key].shape

    def dtype(self, key: str) -> torch.dtype:
        """Format of the tensor's elements."""
        return torch_dtype(self._tensors[key])

    def read(self, key: str) -> torch.Tensor:
        """The whole tensor, put together from its chunks.

        Raises:
            DamagedCheckpoint: a chunk is not what was written.
        """
        stored = self._tensors[key]
        if len(stored.chunks) == 1:
            return read_chunk(self.directory, key, stored, stored.chunks[0])
        whole = torch.empty(stored.shape, dtype=torch_dtype(stored))
        for chunk in stored.chunks:
            place = tuple(slice(start, start + size) for start, size in zip(chunk.offsets, chunk.shape, strict=True))
            whole[place] = read_chunk(self.directory, key, stored, chunk)
        return whole


def read_chunk(directory: Path, key: str, stored: StoredTensor, chunk: Chunk) -> torch.Tensor:
    """One chunk of the tensor `key`; its record and the tensor are in memory at the same time.

    Raises:
        DamagedCheckpoint: its bytes are not those that were written, or as `decode_chunk`.
    """
    return decode_chunk(directory, key, stored, chunk, chunk.read(directory, key))


def decode_chunk(directory: Path, key: str, stored: StoredTensor, chunk: Chunk, record: bytes) -> torch.Tensor:
    """The tensor in a chunk's record.

    Raises:
        DamagedCheckpoint: it is no tensor, or another than the index says.
    """
    try:
        part = torch.load(io.BytesIO(record), map_location="cpu", weights_only=True)
    except Exception as error:  # many kinds, whose texts advise to unpickle what should not be
        raise DamagedCheckpoint(
            f"{directory / chunk.file}: {key} is damaged, not a record of a tensor ({type(error).__name__}); "
            "use another checkpoint"
        ) from None
    if not isinstance(part, torch.Tensor) or part.dtype != torch_dtype(stored) or tuple(part.shape) != chunk.shape:
        raise DamagedCheckpoint(
            f"{directory / chunk.file}: {key} is damaged, not the {stored.dtype} of shape {list(chunk.shape)} that the "
            "index says; use another checkpoint"
        )
    return part


def torch_dtype(stored: StoredTensor) -> torch.dtype:
    """The dtype of a stored tensor."""
    return getattr(torch, stored.dtype)
