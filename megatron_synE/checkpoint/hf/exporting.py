"""A checkpoint of ours → a Hugging Face directory, one parameter in memory at a time."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch

from megatron_synE.checkpoint.files import FILES_FILE, file_checksum, write_text
from megatron_synE.checkpoint.hf.config import CONFIG_FILE, hf_config, read_hf_json
from megatron_synE.checkpoint.hf.mapping import Parameter, hf_shapes, parameters, stored_shape, to_hf
from megatron_synE.checkpoint.hf.safetensors_file import write_safetensors
from megatron_synE.checkpoint.hf.source import INDEX_FILE, SINGLE_FILE
from megatron_synE.checkpoint.layout import read_architecture
from megatron_synE.checkpoint.lazy_tensor import LazyTensor
from megatron_synE.checkpoint.unfinished import UnfinishedDirectory, unfinished_directory
from megatron_synE.checkpoint.whole_tensors import WholeTensors
from megatron_synE.config.model import LlamaArchitecture

TOKENIZER_FILES = (
    "tokenizer.json", "tokenizer.model", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json",
    "vocab.json", "merges.txt", "chat_template.jinja", "original/tokenizer.model",
)  # fmt: skip
GENERATION_FILE = "generation_config.json"

_TOKEN_IDS = ("bos_token_id", "eos_token_id", "pad_token_id")


def export_to_hf(
    checkpoint: str | Path,
    hf_dir: str | Path,
    *,
    tokenizer_dir: str | Path | None = None,
    dtype: torch.dtype | None = None,
    max_shard_size_bytes: int = 5_000_000_000,
) -> list[Path]:
    """Write safetensors, config.json, generation_config.json and the tokenizer's files.

    Everything is written aside and renamed, so that `hf_dir` is complete or absent. The same call after a kill keeps
    the shards that were finished.

    Args:
        checkpoint: a checkpoint, or the directory that holds checkpoints: then its latest.
        hf_dir: must not exist, or be empty.
        tokenizer_dir: where tokenizer files and generation_config.json are copied from.
        dtype: of the weights written; as stored by default.
        max_shard_size_bytes: a safetensors file is not larger, unless a single tensor is.

    Returns:
        The files written.

    Raises:
        ValueError: no checkpoint or a damaged one; `hf_dir` is not empty, or another process is writing it; no such
            tokenizer_dir; too little space: names needed and free bytes.
    """
    target = Path(hf_dir)
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise ValueError(f"{target}: exists and is not empty; remove it or choose another directory")
    if tokenizer_dir is not None and not Path(tokenizer_dir).is_dir():
        raise ValueError(f"{tokenizer_dir}: no such directory; give the one that holds the tokenizer's files")
    architecture = read_architecture(checkpoint)
    stored = WholeTensors(checkpoint)
    shards = list(shards_of(hf_tensors(stored, architecture, dtype), max_shard_size_bytes))
    needed_bytes = sum(tensor.size_bytes for shard in shards for tensor in shard)
    identity = {**identity_of(stored.directory), "dtype": str(dtype), "max_shard_size_bytes": max_shard_size_bytes}
    with unfinished_directory(target.with_name(f".{target.name}.unfinished"), identity, needed_bytes) as unfinished:
        _write_weights(unfinished, shards)
        directory = unfinished.directory
        token_ids = copy_tokenizer(Path(tokenizer_dir), directory) if tokenizer_dir else {}
        written_dtype = str(shards[0][0].dtype).removeprefix("torch.")
        _write(directory / CONFIG_FILE, hf_config(architecture, written_dtype, token_ids))
        if not (directory / GENERATION_FILE).exists():
            _write(directory / GENERATION_FILE, {"_from_model_config": True, **token_ids})
        unfinished.rename(target)
    return sorted(path for path in target.rglob("*") if path.is_file())


def hf_tensors(
    stored: WholeTensors, architecture: LlamaArchitecture, dtype: torch.dtype | None = None
) -> Iterator[LazyTensor]:
    """The Hugging Face tensors of a checkpoint, in `dtype` or as stored; each is read when asked for.

    Raises:
        ValueError: a tensor is missing, or has not the size that state.json says.
    """
    for parameter in parameters(architecture):
        if parameter.name not in stored:
            raise ValueError(f"{stored.directory}: no tensor {parameter.name}; the checkpoint is of another model")
        shape, expected = stored.shape(parameter.name), stored_shape(parameter, architecture)
        padded = parameter.packing == "vocabulary" and shape[0] > expected[0] and shape[1:] == expected[1:]
        if shape != expected and not padded:
            raise ValueError(
                f"{stored.directory}: {parameter.name} is {shape}, state.json says {expected}; use another checkpoint"
            )
        parts = _Parts(stored, parameter, architecture, dtype)
        for name, part_shape in zip(parameter.hf_names, hf_shapes(parameter, architecture), strict=True):
            yield LazyTensor(name, part_shape, dtype or stored.dtype(parameter.name), partial(parts.take, name))


class _Parts:
    """One parameter of ours as its Hugging Face tensors: read once for all of them, and let go with the last."""

    def __init__(self, stored: WholeTensors, parameter: Parameter, architecture: LlamaArchitecture,
                 dtype: torch.dtype | None) -> None:  # fmt: skip
        self._stored, self._parameter, self._architecture, self._dtype = stored, parameter, architecture, dtype
        self._parts: dict[str, torch.Tensor] = {}

    def take(self, name: str) -> torch.Tensor:
        if name not in self._parts:
            whole = self._stored.read(self._parameter.name)
            parts = to_hf(self._parameter, whole if self._dtype is None else whole.to(self._dtype), self._architecture)
            first = self._parameter.hf_names.index(name)  # those before were written by a process that was killed
            self._parts = {name: parts[name] for name in self._parameter.hf_names[first:]}
        return self._parts.pop(name)


def _write_weights(unfinished: UnfinishedDirectory, shards: Sequence[Sequence[LazyTensor]]) -> None:
    weight_map = {}
    for number, shard in enumerate(shards, start=1):
        name = SINGLE_FILE if len(shards) == 1 else f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        unfinished.write(name, partial(write_safetensors, tensors=shard))
        weight_map.update(dict.fromkeys((tensor.name for tensor in shard), name))
    if len(shards) > 1:
        total_bytes = sum(tensor.size_bytes for shard in shards for tensor in shard)
        index = {"metadata": {"total_size": total_bytes}, "weight_map": weight_map}
        _write(unfinished.directory / INDEX_FILE, index)


def shards_of(tensors: Iterable[LazyTensor], limit_bytes: int) -> Iterator[list[LazyTensor]]:
    """The tensors of each file: as many as fit, at least one."""
    shard: list[LazyTensor] = []
    size_bytes = 0
    for tensor in tensors:
        if shard and size_bytes + tensor.size_bytes > limit_bytes:
            yield shard
            shard, size_bytes = [], 0
        shard.append(tensor)
        size_bytes += tensor.size_bytes
    yield shard


def identity_of(checkpoint: Path) -> dict[str, Any]:
    """JSON that changes when the checkpoint's content does: files.json has the checksum of every file."""
    return {"directory": str(checkpoint.resolve()), "files": file_checksum(checkpoint / FILES_FILE)}


def copy_tokenizer(source: Path, directory: Path) -> dict[str, Any]:
    """Copy what belongs to the tokenizer; returns the special token ids that the source's config.json names."""
    for name in (*TOKENIZER_FILES, GENERATION_FILE):
        if (source / name).is_file():
            (directory / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source / name, directory / name)
    config = read_hf_json(source / CONFIG_FILE) if (source / CONFIG_FILE).is_file() else {}
    return {name: config[name] for name in _TOKEN_IDS if config.get(name) is not None}


def _write(path: Path, content: dict[str, Any]) -> None:
    write_text(path, json.dumps(content, indent=2, ensure_ascii=False) + "\n")
