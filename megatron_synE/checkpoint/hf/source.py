"""Reads slices of the tensors in a Hugging Face directory: one safetensors file, or shards with an index.

One file is open at a time: its pages are mapped, and count as this process's memory while they are.
"""

from __future__ import annotations

import reprlib
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from megatron_synE.checkpoint.hf.config import read_hf_json
from megatron_synE.checkpoint.hf.safetensors_file import DTYPES

INDEX_FILE = "model.safetensors.index.json"
SINGLE_FILE = "model.safetensors"


class HuggingFaceTensors:
    """Tensors by name; the files are memory-mapped, and only what is asked for is read.

    Raises:
        ValueError: no safetensors in the directory, or a broken or missing file; names it.
    """

    def __init__(self, hf_dir: str | Path) -> None:
        self.directory = Path(hf_dir)
        self._opened: tuple[str, Any] | None = None
        self._file_of = self._find_files()

    def __contains__(self, name: str) -> bool:
        return name in self._file_of

    def file(self, name: str) -> Path:
        """The file that holds the tensor."""
        if name not in self._file_of:
            raise ValueError(f"{self.directory}: no tensor {name}; not the Llama that its config.json describes")
        return self.directory / self._file_of[name]

    def shape(self, name: str) -> tuple[int, ...]:
        """Shape of the whole tensor."""
        return tuple(self._slice(name).get_shape())

    def dtype(self, name: str) -> torch.dtype:
        """Format of the tensor's elements.

        Raises:
            ValueError: another than bfloat16, float16 and float32.
        """
        stored = self._slice(name).get_dtype()
        if stored not in DTYPES:
            raise ValueError(
                f"{self.file(name)}: {name} is {stored}, weights are {', '.join(DTYPES)}; "
                "quantised models cannot be converted, take the original"
            )
        return DTYPES[stored]

    def files(self) -> list[Path]:
        """The safetensors files, by name."""
        return sorted({self.directory / file for file in self._file_of.values()})

    def read(self, name: str, axis: int = 0, start: int = 0, stop: int | None = None) -> torch.Tensor:
        """`[start, stop)` along `axis`, all of it by default."""
        stored = self._slice(name)
        stop = stored.get_shape()[axis] if stop is None else stop
        return stored[:, start:stop] if axis == 1 else stored[start:stop]

    def _find_files(self) -> dict[str, str]:
        index = self.directory / INDEX_FILE
        if index.is_file():
            file_of = read_hf_json(index).get("weight_map")
            if not isinstance(file_of, dict) or not file_of:
                raise ValueError(f"{index}: weight_map is {reprlib.repr(file_of)}; download the model again")
            for name, file in file_of.items():
                # Only a file's name: an index must not lead out of its directory.
                named = isinstance(file, str) and file == Path(file).name and file.isprintable()
                if not named or not file.endswith(".safetensors"):
                    raise ValueError(
                        f"{index}: weight_map names {reprlib.repr(file)} for {name}, no .safetensors file beside it; "
                        "download the model again"
                    )
            return file_of
        if (self.directory / SINGLE_FILE).is_file():
            return dict.fromkeys(self._open(SINGLE_FILE).keys(), SINGLE_FILE)
        raise ValueError(
            f"{self.directory}: neither {INDEX_FILE} nor {SINGLE_FILE}; give a directory with safetensors "
            "(older .bin files are pickles and are not read)"
        )

    def _open(self, file: str) -> Any:
        if self._opened is None or self._opened[0] != file:
            path = self.directory / file
            self._opened = None
            try:
                self._opened = file, safe_open(path, framework="pt", device="cpu")
            except FileNotFoundError:
                raise ValueError(f"{path}: missing, although {INDEX_FILE} names it; download it") from None
            except (SafetensorError, OSError) as error:
                raise ValueError(f"{path}: not a whole safetensors file ({error}); download it again") from None
        return self._opened[1]

    def _slice(self, name: str) -> Any:
        path = self.file(name)
        try:
            return self._open(path.name).get_slice(name)
        except SafetensorError as error:
            raise ValueError(f"{path}: {name}: {error}; download it again") from None
