"""Reads whole tensors out of a checkpoint, one at a time, without a model or process groups."""

from __future__ import annotations

import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from megatron_synE.checkpoint.layout import INDEX_FILE, check_files, read_json, resolve


class WholeTensors:
    """The tensors of one checkpoint by name. Only the tensor being read is in memory.

    Raises:
        ValueError: there is no checkpoint at `path`, or it is damaged.
    """

    def __init__(self, path: str | Path) -> None:
        self.directory = resolve(path)
        check_files(self.directory)
        self._entries: dict[str, dict[str, Any]] = read_json(self.directory / INDEX_FILE)["tensors"]

    def __iter__(self) -> Iterator[str]:
        return iter(self._entries)

    def __contains__(self, key: str) -> bool:
        return key in self._entries

    def shape(self, key: str) -> tuple[int, ...]:
        """Shape of the whole tensor."""
        return tuple(self._entries[key]["shape"])

    def read(self, key: str) -> torch.Tensor:
        """The whole tensor, put together from its chunks.

        Raises:
            ValueError: a chunk cannot be read.
        """
        entry = self._entries[key]
        whole = None
        for chunk in entry["chunks"]:
            part = self._read_chunk(key, chunk)
            if list(part.shape) == entry["shape"]:
                return part
            if whole is None:
                whole = torch.empty(entry["shape"], dtype=part.dtype)
            place = tuple(slice(start, start + size) for start, size in zip(chunk["offsets"], part.shape, strict=True))
            whole[place] = part
        assert whole is not None, f"{key} has no chunks"
        return whole

    def _read_chunk(self, key: str, chunk: dict[str, Any]) -> torch.Tensor:
        path = self.directory / Path(chunk["file"]).name
        try:
            with open(path, "rb") as file:
                file.seek(chunk["start_bytes"])
                record = io.BytesIO(file.read(chunk["length_bytes"]))
            return torch.load(record, map_location="cpu", weights_only=True)
        except Exception as error:  # torch.load raises many kinds on broken bytes
            raise ValueError(f"{path}: damaged, {key} cannot be read ({error}); use another checkpoint") from error
