"""A checkpoint of ours → a Hugging Face directory, one shard of safetensors in memory at a time."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from megatron_synE.checkpoint.hf.config import CONFIG_FILE, hf_config, read_hf_json
from megatron_synE.checkpoint.hf.mapping import parameters, to_hf
from megatron_synE.checkpoint.hf.source import INDEX_FILE, SINGLE_FILE
from megatron_synE.checkpoint.layout import read_architecture
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

    Everything is written aside and renamed, so that `hf_dir` is complete or absent.

    Args:
        checkpoint: a checkpoint, or the directory that holds checkpoints: then its latest.
        hf_dir: must not exist, or be empty.
        tokenizer_dir: where tokenizer files and generation_config.json are copied from.
        dtype: of the weights written; as stored by default.
        max_shard_size_bytes: a safetensors file is not larger, unless a single tensor is.

    Returns:
        The files written.

    Raises:
        ValueError: no checkpoint or a damaged one; `hf_dir` is not empty; no such tokenizer_dir.
    """
    target = Path(hf_dir)
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise ValueError(f"{target}: exists and is not empty; remove it or choose another directory")
    if tokenizer_dir is not None and not Path(tokenizer_dir).is_dir():
        raise ValueError(f"{tokenizer_dir}: no such directory; give the one that holds the tokenizer's files")
    architecture = read_architecture(checkpoint)
    tensors = WholeTensors(checkpoint)
    temporary = target.with_name(f".{target.name}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    try:
        temporary.mkdir(parents=True)
        written_dtype = _write_weights(temporary, tensors, architecture, dtype, max_shard_size_bytes)
        token_ids = copy_tokenizer(Path(tokenizer_dir), temporary) if tokenizer_dir else {}
        _write(temporary / CONFIG_FILE, hf_config(architecture, written_dtype, token_ids))
        if not (temporary / GENERATION_FILE).exists():
            _write(temporary / GENERATION_FILE, {"_from_model_config": True, **token_ids})
        if target.exists():
            target.rmdir()
        temporary.rename(target)
    except OSError as error:
        raise ValueError(f"{target}: cannot be written ({error}); make room or choose another directory") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return sorted(path for path in target.rglob("*") if path.is_file())


def _write_weights(
    directory: Path, tensors: WholeTensors, architecture: LlamaArchitecture, dtype: torch.dtype | None,
    max_shard_size_bytes: int,
) -> str:  # fmt: skip
    """Shards under provisional names, then under the final ones, which carry their number."""
    shards: list[tuple[Path, list[str]]] = []
    total_bytes = 0
    written_dtype = ""
    for content in _shards(_hf_tensors(tensors, architecture, dtype), max_shard_size_bytes):
        path = directory / f"shard-{len(shards) + 1}"
        save_file(content, path, metadata={"format": "pt"})
        _fsync(path)
        shards.append((path, list(content)))
        total_bytes += sum(tensor.nbytes for tensor in content.values())
        written_dtype = str(next(iter(content.values())).dtype).removeprefix("torch.")
        content.clear()
    if len(shards) == 1:
        shards[0][0].rename(directory / SINGLE_FILE)
        return written_dtype
    weight_map = {}
    for number, (path, names) in enumerate(shards, start=1):
        final = f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        path.rename(directory / final)
        weight_map.update(dict.fromkeys(names, final))
    _write(directory / INDEX_FILE, {"metadata": {"total_size": total_bytes}, "weight_map": weight_map})
    return written_dtype


def _hf_tensors(
    tensors: WholeTensors, architecture: LlamaArchitecture, dtype: torch.dtype | None
) -> Iterator[tuple[str, torch.Tensor]]:
    for parameter in parameters(architecture):
        if parameter.name not in tensors:
            raise ValueError(f"{tensors.directory}: no tensor {parameter.name}; the checkpoint is of another model")
        whole = tensors.read(parameter.name)
        yield from to_hf(parameter, whole if dtype is None else whole.to(dtype), architecture).items()


def _shards(tensors: Iterator[tuple[str, torch.Tensor]], limit_bytes: int) -> Iterator[dict[str, torch.Tensor]]:
    shard: dict[str, torch.Tensor] = {}
    size_bytes = 0
    for name, tensor in tensors:
        if shard and size_bytes + tensor.nbytes > limit_bytes:
            yield shard
            shard, size_bytes = {}, 0
        shard[name] = tensor
        size_bytes += tensor.nbytes
    yield shard


def copy_tokenizer(source: Path, directory: Path) -> dict[str, Any]:
    """Copy what belongs to the tokenizer; returns the special token ids that the source's config.json names."""
    for name in (*TOKENIZER_FILES, GENERATION_FILE):
        if (source / name).is_file():
            (directory / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source / name, directory / name)
    config = read_hf_json(source / CONFIG_FILE) if (source / CONFIG_FILE).is_file() else {}
    return {name: config[name] for name in _TOKEN_IDS if config.get(name) is not None}


def _write(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    _fsync(path)


def _fsync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
