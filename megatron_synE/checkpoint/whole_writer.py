"""Writes a weights-only checkpoint tensor by tensor: without a model, without process groups, and not all at once.

The files are those of `torch_dist`: a run loads them at any layout, and torch's own reader reads them. Large tensors
lie in chunks of rows, so that a reader needs memory for one chunk only, and a rank reads what it holds.
"""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import torch
from megatron.core.dist_checkpointing.strategies.common import COMMON_STATE_FNAME
from torch.distributed.checkpoint import FileSystemWriter
from torch.distributed.checkpoint.filesystem import _StorageInfo
from torch.distributed.checkpoint.metadata import MetadataIndex
from torch.distributed.checkpoint.storage import WriteResult

from megatron_synE.checkpoint import files, layout
from megatron_synE.checkpoint.checksummed_file import ChecksummedFile
from megatron_synE.checkpoint.contents import FORMAT
from megatron_synE.checkpoint.hf.mapping import Parameter, parameters, stored_shape
from megatron_synE.checkpoint.index import Chunk, StoredTensor
from megatron_synE.checkpoint.lazy_tensor import LazyTensor
from megatron_synE.checkpoint.sharded import own_version
from megatron_synE.checkpoint.state import FORMAT_VERSION
from megatron_synE.checkpoint.torch_dist import metadata_of
from megatron_synE.checkpoint.unfinished import UnfinishedDirectory, unfinished_directory
from megatron_synE.checkpoint.whole_tensors import WholeTensors
from megatron_synE.config.model import LlamaArchitecture

CHUNK_BYTES = 2**26
"""A chunk has as many rows as fit, at least one."""
FILE_BYTES = 2**30
"""A file is closed after the tensor with which it reaches this size: what a kill costs at most."""
# For each tensor's zip records and for the small files; only the check for free space uses it.
_OVERHEAD_BYTES = 2**14

SINGLE_PROCESS_LAYOUT = {
    "world_size": 1, "tensor_model_parallel_size": 1, "pipeline_model_parallel_size": 1,
    "virtual_pipeline_model_parallel_size": 1, "context_parallel_size": 1, "data_parallel_size": 1,
}  # fmt: skip


def write_whole(
    root: str | Path, *, step: int, tensors: Iterable[LazyTensor], architecture: LlamaArchitecture,
    state: Mapping[str, Any], identity: Mapping[str, Any],
) -> Path:  # fmt: skip
    """Write `{root}/step_XXXXXXXX` and move `latest` to it; after a kill, the same call goes on where it was.

    Args:
        tensors: megatron-core's names, as `hf.mapping` lists them; each is read once at most, in this order.
        state: the caller's own keys of state.json.
        identity: JSON that changes with whatever decides the tensors' content.

    Raises:
        ValueError: the place cannot be written to, or has too little space: names needed and free bytes.
    """
    root = Path(root)
    tensors = list(tensors)
    needed_bytes = sum(tensor.size_bytes + _OVERHEAD_BYTES for tensor in tensors)
    description = {
        "format_version": FORMAT_VERSION,
        "megatron_synE_version": own_version(),
        "step": step,
        "architecture": dataclasses.asdict(architecture),
        "layout": SINGLE_PROCESS_LAYOUT,
        "has_optimizer": False,
        "optimizer_step": None,
        **state,
    }
    identity = {"state": description, "tensors": [(t.name, t.shape, str(t.dtype)) for t in tensors], **identity}
    with unfinished_directory(root / ".unfinished", identity, needed_bytes) as unfinished:
        index: dict[str, Any] = {}
        for number, group in enumerate(_by_file(tensors)):
            index.update(_write_file(unfinished, f"__0_{number}.distcp", group))
        _write_descriptions(unfinished.directory, index, description)
        files.write_file_list(unfinished.directory, unfinished.checksums())
        temporary = layout.temporary_directory(root, step)
        shutil.rmtree(temporary, ignore_errors=True)  # what a killed save left
        unfinished.rename(temporary)
        return layout.publish(root, step)


def model_tensors(checkpoint: Path, architecture: LlamaArchitecture) -> list[LazyTensor]:
    """The model's parameters in a checkpoint, without padding rows and without what belongs to the optimizer."""
    stored = WholeTensors(checkpoint)

    def parameter_of(parameter: Parameter) -> LazyTensor:
        shape, key = stored_shape(parameter, architecture), parameter.name
        return LazyTensor(key, shape, stored.dtype(key), lambda: stored.read(key)[: shape[0]])

    return [parameter_of(parameter) for parameter in parameters(architecture)]


def _by_file(tensors: Iterable[LazyTensor]) -> Iterator[list[LazyTensor]]:
    group: list[LazyTensor] = []
    for tensor in tensors:
        group.append(tensor)
        if sum(member.size_bytes for member in group) >= FILE_BYTES:
            yield group
            group = []
    if group:
        yield group


def _write_file(unfinished: UnfinishedDirectory, name: str, group: Sequence[LazyTensor]) -> dict[str, Any]:
    """The entries of index.json for the tensors of one file."""

    def fill(file: ChecksummedFile) -> dict[str, Any]:
        return {tensor.name: _write_tensor(file, name, tensor) for tensor in group}

    entries: dict[str, Any] = unfinished.write(name, fill)
    return entries


def _write_tensor(file: ChecksummedFile, file_name: str, tensor: LazyTensor) -> dict[str, Any]:
    whole = tensor.read()
    assert (tuple(whole.shape), whole.dtype) == (tensor.shape, tensor.dtype), tensor.name
    row_bytes = max(1, tensor.size_bytes // max(1, tensor.shape[0]))
    chunks = []
    for first_row in range(0, tensor.shape[0], max(1, CHUNK_BYTES // row_bytes)):
        rows = whole[first_row : first_row + max(1, CHUNK_BYTES // row_bytes)]
        start_bytes = file.size_bytes
        torch.save(rows.clone(), cast(Any, file))  # a slice would bring the whole tensor's memory with it
        chunks.append(
            {
                "offsets": [first_row] + [0] * (rows.dim() - 1),
                "shape": list(rows.shape),
                "file": file_name,
                "start_bytes": start_bytes,
                "length_bytes": file.size_bytes - start_bytes,
                "checksum": file.take_checksum(),
            }
        )
    return {"dtype": str(tensor.dtype).removeprefix("torch."), "shape": list(tensor.shape), "chunks": chunks}


def _write_descriptions(directory: Path, index: dict[str, Any], description: dict[str, Any]) -> None:
    """All small files: ours, and those that megatron-core's and torch's tools ask for."""
    for name, content in (
        (files.INDEX_FILE, {"tensors": index}), (files.STATE_FILE, description), (files.METADATA_FILE, FORMAT),
    ):  # fmt: skip
        files.write_text(directory / name, files.to_json(name, content))
    written = [
        WriteResult(
            MetadataIndex(name, chunk["offsets"]),
            chunk["length_bytes"],
            _StorageInfo(chunk["file"], chunk["start_bytes"], chunk["length_bytes"]),
        )
        for name, entry in index.items()
        for chunk in entry["chunks"]
    ]
    FileSystemWriter(directory).finish(metadata_of(_stored(index)), [written])
    torch.save({}, directory / COMMON_STATE_FNAME)


def _stored(index: dict[str, Any]) -> dict[str, StoredTensor]:
    return {
        name: StoredTensor(entry["dtype"], entry["shape"], tuple(Chunk(**chunk) for chunk in entry["chunks"]))
        for name, entry in index.items()
    }
