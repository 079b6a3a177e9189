"""Reads slices of the tensors in a Hugging Face directory: one safetensors file, or shards with an index."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from megatron_synE.checkpoint.layout import read_json

INDEX_FILE = "model.safetensors.index.json"
SINGLE_FILE = "model.safetensors"


class HuggingFaceTensors:
    """Tensors by name; the files are memory-mapped, and only what is asked for is read.

    Raises:
        ValueError: no safetensors in the directory, or a broken or missing file; names it.
    """

    def __init__(self, hf_dir: str | Path) -> None:
        self.directory = Path(hf_dir)
        self._open_files: dict[str, Any] = {}
        self._file_of = self._find_files()

    def __contains__(self, name: str) -> bool:
        return name in self._file_of

    def shape(self, name: str) -> tuple[int, ...]:
        """Shape of the whole tensor."""
        return tuple(self._slice(name).get_shape())

    def dtype(self, name: str) -> torch.dtype:
        """Format of the tensor's elements."""
        return self._slice(name)[:0].dtype

    def read(self, name: str, axis: int = 0, start: int = 0, stop: int | None = None) -> torch.Tensor:
        """`[start, stop)` along `axis`, all of it by default."""
        stored = self._slice(name)
        stop = stored.get_shape()[axis] if stop is None else stop
        return stored[:, start:stop] if axis == 1 else stored[start:stop]

    def _find_files(self) -> dict[str, str]:
        if (self.directory / INDEX_FILE).is_file():
            file_of = read_json(self.directory / INDEX_FILE).get("weight_map")
            if not isinstance(file_of, dict):
                raise ValueError(f"{self.directory / INDEX_FILE}: has no weight_map; download the model again")
            return {name: Path(file).name for name, file in file_of.items()}
        if (self.directory / SINGLE_FILE).is_file():
            return dict.fromkeys(self._open(SINGLE_FILE).keys(), SINGLE_FILE)
        raise ValueError(
            f"{self.directory}: neither {INDEX_FILE} nor {SINGLE_FILE}; give a directory with safetensors "
            "(older .bin files are pickles and are not read)"
        )

    def _open(self, file: str) -> Any:
        if file not in self._open_files:
            path = self.directory / file
            try:
                self._open_files[file] = safe_open(path, framework="pt", device="cpu")
            except FileNotFoundError:
                raise ValueError(f"{path}: missing, although {INDEX_FILE} names it; download it") from None
            except SafetensorError as error:
                raise ValueError(f"{path}: not a whole safetensors file ({error}); download it again") from None
        return self._open_files[file]

    def _slice(self, name: str) -> Any:
        if name not in self._file_of:
            raise ValueError(f"{self.directory}: no tensor {name}; not the Llama that its config.json describes")
        try:
            return self._open(self._file_of[name]).get_slice(name)
        except SafetensorError as error:
            raise ValueError(f"{self.directory / self._file_of[name]}: {name}: {error}; download it again") from None
