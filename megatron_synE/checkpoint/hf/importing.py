"""Hugging Face Llama → our parameters, slice by slice.

Each process reads the rows or columns of its own shards and nothing else, one parameter at a time: beside the model
there is never more than one parameter in memory.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import reduce
from pathlib import Path
from typing import Any

import torch
import xxhash

from megatron_synE.checkpoint.contents import SIZE_FIELDS
from megatron_synE.checkpoint.hf.config import CONFIG_FILE, architecture_from_hf
from megatron_synE.checkpoint.hf.mapping import Parameter, hf_shapes, pack_qkv, parameters, stored_shape
from megatron_synE.checkpoint.hf.source import HuggingFaceTensors
from megatron_synE.checkpoint.lazy_tensor import LazyTensor
from megatron_synE.config.model import LlamaArchitecture

_IDENTITY_BYTES = 2**20


def init_from_hf(model_chunks: Sequence[torch.nn.Module], hf_dir: str | Path) -> LlamaArchitecture:
    """Fill this process's model chunks (bare or in DistributedDataParallel) from a Hugging Face directory.

    Weights keep the model's dtype; padding rows of the vocabulary become zero. An optimizer that exists already needs
    `reload_model_params()` afterwards.

    Returns:
        The architecture in config.json.

    Raises:
        ValueError: not a Llama, another architecture than the model's, or a missing or broken file.
    """
    from megatron.core import parallel_state

    architecture = architecture_from_hf(hf_dir)
    tensors = HuggingFaceTensors(hf_dir)
    tp_rank = parallel_state.get_tensor_model_parallel_rank()
    tp_size = parallel_state.get_tensor_model_parallel_world_size()
    own = {name: param for chunk in model_chunks for name, param in _named_as_stored(chunk)}
    by_name = {parameter.name: parameter for parameter in parameters(architecture)}
    # The last stage of a model with tied embeddings holds a copy of the embedding under the output layer's name.
    by_name.setdefault("output_layer.weight", by_name["embedding.word_embeddings.weight"])
    foreign = sorted(set(own) - set(by_name))
    if foreign:
        raise ValueError(f"{hf_dir}: has nothing for {foreign[0]}; set the fields of `model` to those of config.json")
    for name, target in own.items():
        shard = read_shard(tensors, by_name[name], architecture, tp_rank, tp_size, target.shape[0] * tp_size)
        if shard.shape != target.shape:
            raise ValueError(
                f"{hf_dir}: {name} is {tuple(shard.shape)} by config.json, the model has {tuple(target.shape)}; "
                "set the fields of `model` to those of config.json"
            )
        with torch.no_grad():
            target.copy_(shard)
    return architecture


def check_hf(hf_dir: str | Path, own: LlamaArchitecture) -> None:
    """Whether a model of these sizes can start from the directory, as far as its headers tell; reads no weight.

    Raises:
        ValueError: other sizes, or a file or tensor is missing or not what config.json says; names it.
    """
    architecture = architecture_from_hf(hf_dir)
    differing = [f"{name} is {getattr(architecture, name)}, this run has {getattr(own, name)}" for name in SIZE_FIELDS
                 if getattr(architecture, name) != getattr(own, name)]  # fmt: skip
    if differing:
        raise ValueError(
            f"{Path(hf_dir) / CONFIG_FILE}: another model: {'; '.join(differing)}; set the fields of `model` to those "
            "of config.json, or drop them"
        )
    tensors = HuggingFaceTensors(hf_dir)
    for parameter in parameters(architecture):
        check_parts(tensors, parameter, architecture)


def whole_parameters(
    hf_dir: str | Path, architecture: LlamaArchitecture, dtype: torch.dtype | None = None
) -> list[LazyTensor]:
    """Every parameter, unpadded, in `dtype` or as stored; read when asked for.

    Raises:
        ValueError: a file or a tensor is missing, broken, or not what config.json says; no weight was read yet.
    """
    tensors = HuggingFaceTensors(hf_dir)
    return [_whole_parameter(tensors, parameter, architecture, dtype) for parameter in parameters(architecture)]


def _whole_parameter(
    tensors: HuggingFaceTensors, parameter: Parameter, architecture: LlamaArchitecture, dtype: torch.dtype | None
) -> LazyTensor:
    check_parts(tensors, parameter, architecture)
    stored = reduce(torch.promote_types, [tensors.dtype(name) for name in parameter.hf_names])

    def read() -> torch.Tensor:
        return read_shard(tensors, parameter, architecture).to(dtype or stored)

    return LazyTensor(parameter.name, stored_shape(parameter, architecture), dtype or stored, read)


def identity_of(hf_dir: str | Path) -> dict[str, Any]:
    """JSON that changes when the model's files do: their names, sizes, times of change, and headers."""
    paths = [Path(hf_dir) / CONFIG_FILE, *HuggingFaceTensors(hf_dir).files()]
    return {"hf_dir": str(Path(hf_dir).resolve()), "files": [_file_identity(path) for path in paths]}


def _file_identity(path: Path) -> list[Any]:
    status = path.stat()
    with open(path, "rb") as file:
        beginning = xxhash.xxh3_128_hexdigest(file.read(_IDENTITY_BYTES))
    return [path.name, status.st_size, status.st_mtime_ns, beginning]


def read_shard(
    tensors: HuggingFaceTensors, parameter: Parameter, architecture: LlamaArchitecture, tp_rank: int = 0,
    tp_size: int = 1, padded_rows: int | None = None,
) -> torch.Tensor:  # fmt: skip
    """The part of `parameter` that tensor-parallel process `tp_rank` of `tp_size` holds.

    Raises:
        ValueError: a tensor is missing, has another shape than config.json says, or is no floating-point weight.
    """
    shapes = check_parts(tensors, parameter, architecture)
    if parameter.packing == "vocabulary":
        return _read_vocabulary(tensors, parameter, shapes[0], tp_rank, tp_size, padded_rows or shapes[0][0])
    axis = parameter.split_axis
    if axis is None:
        return tensors.read(parameter.hf_names[0])
    parts = []
    for name, shape in zip(parameter.hf_names, shapes, strict=True):
        width, rest = divmod(shape[axis], tp_size)
        if rest:
            raise ValueError(f"parallel.tensor_model_parallel_size: {tp_size} does not divide {shape[axis]} of {name}")
        parts.append(tensors.read(name, axis, tp_rank * width, (tp_rank + 1) * width))
    if parameter.packing == "qkv":
        query, key, value = parts
        return pack_qkv(query, key, value, architecture.num_query_groups // tp_size)
    return torch.cat(parts) if parameter.packing == "gate_up" else parts[0]


def check_parts(
    tensors: HuggingFaceTensors, parameter: Parameter, architecture: LlamaArchitecture
) -> list[tuple[int, ...]]:
    """Shapes of the tensors that `parameter` is made of, compared with what the headers of their files say.

    Raises:
        ValueError: as `read_shard`.
    """
    shapes = hf_shapes(parameter, architecture)
    for name, shape in zip(parameter.hf_names, shapes, strict=True):
        if tensors.shape(name) != shape:
            raise ValueError(
                f"{tensors.file(name)}: {name} is {tensors.shape(name)}, config.json says {shape}; "
                "download both again, or correct config.json"
            )
        tensors.dtype(name)
    return shapes


def _read_vocabulary(
    tensors: HuggingFaceTensors, parameter: Parameter, shape: tuple[int, ...], tp_rank: int, tp_size: int,
    padded_rows: int,
) -> torch.Tensor:  # fmt: skip
    rows = padded_rows // tp_size
    first = min(tp_rank * rows, shape[0])
    last = min((tp_rank + 1) * rows, shape[0])
    real = tensors.read(parameter.hf_names[0], 0, first, last)
    if len(real) == rows:
        return real
    return torch.cat([real, real.new_zeros(rows - len(real), shape[1])])


def _named_as_stored(chunk: Any) -> Iterator[tuple[str, torch.nn.Parameter]]:
    """The chunk's parameters under the names that a checkpoint gives them: global layer numbers, fused norms."""
    while hasattr(chunk, "module"):
        chunk = chunk.module
    first_layer = chunk.decoder.layers[0].layer_number - 1 if len(chunk.decoder.layers) else 0
    for name, parameter in chunk.named_parameters():
        if name.startswith("decoder.layers."):
            number, rest = name.removeprefix("decoder.layers.").split(".", 1)
            name = f"decoder.layers.{int(number) + first_layer}.{rest}"
        name = name.replace(".input_layernorm.", ".self_attention.linear_qkv.layer_norm_")
        yield name.replace(".pre_mlp_layernorm.", ".mlp.linear_fc1.layer_norm_"), parameter
