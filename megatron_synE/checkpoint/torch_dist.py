"""megatron-core's torch_dist format, written without helper processes and read without pickle.

The files are stock: `*.distcp` with one `torch.save` record per chunk, `.metadata` and `common.pt`, so megatron-core's
and torch's own tools read a checkpoint of ours. Two things differ from megatron-core's strategies:

- **Writing** happens in this process (threads), or for an asynchronous save in one forked child, whose copy-on-write
  memory is the snapshot. megatron-core's writer starts a manager process and a child per file for the same work.
  Each chunk's checksum, and each file's, is taken of the bytes as they are written.
- **Reading** uses `index.json`, written beside `.metadata` with the same content. `.metadata` and `common.pt`, which
  are pickles, are never opened. A chunk's record is read, compared with its checksum, and only then handed to
  `torch.load(weights_only=True)`, torch's unpickler that builds tensors and nothing else. Sharded objects, which
  megatron-core would unpickle, are neither written nor read.
"""

from __future__ import annotations

import json
import os
import tempfile
from collections import defaultdict
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, BinaryIO, cast

import torch
from megatron.core.dist_checkpointing.dict_utils import nested_values
from megatron.core.dist_checkpointing.mapping import ShardedTensor
from megatron.core.dist_checkpointing.strategies.base import LoadCommonStrategy
from megatron.core.dist_checkpointing.strategies.state_dict_saver import save_state_dict_async_plan
from megatron.core.dist_checkpointing.strategies.torch import (
    MCoreLoadPlanner,
    MCoreSavePlanner,
    TorchDistLoadShardedStrategy,
    _replace_sharded_keys_with_state_dict_keys,
    _replace_state_dict_keys_with_sharded_keys,
    _restore_dict_types,
    _unwrap_pyt_sharded_tensor,
    mcore_to_pyt_state_dict,
)
from torch.distributed._shard._utils import narrow_tensor_by_index
from torch.distributed.checkpoint import FileSystemReader, FileSystemWriter
from torch.distributed.checkpoint import load as load_torch_state_dict
from torch.distributed.checkpoint.filesystem import _split_by_size_and_type, _StorageInfo
from torch.distributed.checkpoint.metadata import (
    ChunkStorageMetadata,
    Metadata,
    MetadataIndex,
    StorageMeta,
    TensorProperties,
    TensorStorageMetadata,
)
from torch.distributed.checkpoint.planner import LoadPlan, ReadItem, SavePlan, SavePlanner, WriteItem
from torch.distributed.checkpoint.storage import WriteResult
from torch.futures import Future

from megatron_synE.checkpoint.checksummed_file import ChecksummedFile
from megatron_synE.checkpoint.files import INDEX_FILE, write_text
from megatron_synE.checkpoint.index import StoredTensor
from megatron_synE.checkpoint.whole_tensors import read_chunk, torch_dtype

WRITER_THREADS = 2
"""Files per rank, written at the same time."""
READER_THREADS = 4
"""Files that a rank reads at the same time; each holds one chunk in memory, twice."""


class Writer(FileSystemWriter):
    """torch's file writer, cut into planning, writing, which may happen in a forked child, and the coordinator's end.

    Checksums are taken of the bytes on their way to the file: nothing is read again.
    """

    def __init__(self, directory: Path) -> None:
        super().__init__(directory, thread_count=WRITER_THREADS, sync_files=True)
        self._plan: tuple[SavePlan, SavePlanner] | None = None
        self._metadata: Metadata | None = None
        self._report = _memory_file()

    def plan(self, sharded_state_dict: dict[str, Any]) -> None:
        """Agree with all ranks on who writes what, and copy what lies on a GPU to the host."""
        grouped, _, _ = _replace_state_dict_keys_with_sharded_keys(sharded_state_dict, keep_only_main_replica=True)
        for shards in grouped.values():
            for shard in shards:
                shard.data = shard.data.detach().cpu()
        planner = MCoreSavePlanner(dedup_replicated_tensors=False, flatten_state_dict=False)
        (_, self._metadata, _), *_ = save_state_dict_async_plan(
            mcore_to_pyt_state_dict(grouped, is_loading=False), self, planner=planner
        )

    def prepare_write_data(self, plan: SavePlan, planner: SavePlanner) -> None:
        """Keep the plan; called by megatron-core once all ranks have agreed on it."""
        self._plan = (plan, planner)

    def write(self) -> None:
        """Write this rank's files. What happened, also an error, is kept for `report`."""
        assert self._plan is not None
        plan, planner = self._plan
        items = _split_by_size_and_type(WRITER_THREADS, plan.items)
        names = [f"{plan.storage_data.prefix}{number}.distcp" for number in range(WRITER_THREADS)]
        try:
            with ThreadPoolExecutor(WRITER_THREADS) as pool:
                files = list(pool.map(lambda name, part: _write_file(self.path / name, part, planner), names, items))
            content: dict[str, Any] = {"files": files}
        except Exception as error:
            content = {"error": str(error) if isinstance(error, OSError) else f"{type(error).__name__}: {error}"}
        self._report.write(json.dumps(content).encode())
        self._report.flush()

    def write_in_child(self) -> None:
        """`write` after a fork: OpenMP's threads exist only in the parent."""
        torch.set_num_threads(1)
        self.write()

    def report(self) -> dict[str, Any]:
        """What this rank wrote, `{"files": […]}`, or why it could not, `{"error": …}`."""
        self._report.seek(0)
        text = self._report.read()
        self._report.close()
        self._plan = None
        try:
            return json.loads(text)
        except ValueError:
            return {"error": "the writing process was killed before it had written everything"}

    def finish_all(self, reports: list[dict[str, Any]]) -> dict[str, str]:
        """On the coordinator, of all ranks' reports: `.metadata` as torch writes it, and the same as index.json.

        Returns:
            The checksums of the ranks' files by name.

        Raises:
            OSError: a rank could not write, or wrote less than was planned.
        """
        errors = {f"process {rank}: {report['error']}" for rank, report in enumerate(reports) if "error" in report}
        if errors:
            raise OSError("; ".join(sorted(errors)))
        assert self._metadata is not None, "only the coordinator has it"
        files = [file for report in reports for file in report["files"]]
        written = [(file["name"], chunk) for file in files for chunk in file["chunks"]]
        index = _index_of(self._metadata, written)
        self.finish(self._metadata, [[_result(name, chunk) for name, chunk in written]])
        write_text(Path(self.path) / INDEX_FILE, json.dumps({"tensors": index}))
        return {file["name"]: file["checksum"] for file in files}


def _memory_file() -> BinaryIO:
    """For what happened in a child, which a full disk must not keep from its parent."""
    if hasattr(os, "memfd_create"):
        return os.fdopen(os.memfd_create("written"), "w+b")
    return cast(BinaryIO, tempfile.TemporaryFile())


def _write_file(path: Path, items: list[WriteItem], planner: SavePlanner) -> dict[str, Any]:
    """Write the tensors of `items` one after the other; name, checksum and chunks of the file, JSON-able."""
    with ChecksummedFile(path) as file:
        try:
            chunks = [_write_chunk(file, item, planner) for item in items]
            checksum = file.sync()
        except RuntimeError:
            if file.error is not None:
                raise file.error from None
            raise
    return {"name": path.name, "checksum": checksum, "chunks": chunks}


def _write_chunk(file: ChecksummedFile, item: WriteItem, planner: SavePlanner) -> dict[str, Any]:
    tensor = cast(torch.Tensor, planner.resolve_data(item)).detach()
    assert item.index.offset is not None, "every tensor is sharded"
    if tensor.untyped_storage().size() != tensor.nbytes:
        tensor = tensor.clone()  # torch.save writes the whole storage
    start_bytes = file.size_bytes
    torch.save(tensor, cast(BinaryIO, file))
    return {
        "key": item.index.fqn,
        "offsets": list(item.index.offset),
        "index": item.index.index,
        "shape": list(tensor.shape),
        "start_bytes": start_bytes,
        "length_bytes": file.size_bytes - start_bytes,
        "checksum": file.take_checksum(),
    }


class Reader(FileSystemReader):
    """torch's file reader, with the metadata from index.json instead of a pickle; it compares checksums as it reads."""

    def __init__(self, directory: Path, tensors: dict[str, StoredTensor]) -> None:
        super().__init__(directory)
        self._tensors = tensors
        self._chunks = {
            MetadataIndex(key, torch.Size(chunk.offsets)): (stored, chunk)
            for key, stored in tensors.items()
            for chunk in stored.chunks
        }

    def read_data(self, plan: LoadPlan, planner: Any) -> Future[None]:
        """Read the chunks that the plan names, of several files at a time, each once.

        Raises:
            DamagedCheckpoint: a chunk is not what was written.
        """
        wanted: dict[str, dict[MetadataIndex, list[ReadItem]]] = defaultdict(lambda: defaultdict(list))
        for item in plan.items:
            _, chunk = self._chunks[item.storage_index]
            wanted[chunk.file][item.storage_index].append(item)

        def read_file(items_by_chunk: dict[MetadataIndex, list[ReadItem]]) -> None:
            in_file = sorted(items_by_chunk.items(), key=lambda entry: self._chunks[entry[0]][1].start_bytes)
            for place, items in in_file:
                part = read_chunk(Path(self.path), place.fqn, *self._chunks[place])
                for item in items:
                    target = planner.resolve_tensor(item).detach()
                    target.copy_(narrow_tensor_by_index(part, item.storage_offsets, item.lengths))
                    planner.commit_tensor(item, target)

        with ThreadPoolExecutor(READER_THREADS) as pool:
            list(pool.map(read_file, wanted.values()))
        done: Future[None] = Future()
        done.set_result(None)
        return done

    def read_metadata(self, *args: Any, **kwargs: Any) -> Metadata:
        """Where every chunk lies."""
        return metadata_of(self._tensors)


def metadata_of(tensors: Mapping[str, StoredTensor]) -> Metadata:
    """The tensors in torch's words; where their chunks lie in files is not said."""
    described: dict[str, Any] = {}
    for key, stored in tensors.items():
        chunks = [ChunkStorageMetadata(torch.Size(c.offsets), torch.Size(c.shape)) for c in stored.chunks]
        properties = TensorProperties(dtype=torch_dtype(stored))
        described[key] = TensorStorageMetadata(properties, torch.Size(stored.shape), chunks)
    return Metadata(described, storage_data={}, storage_meta=StorageMeta())


class LoadStrategy(TorchDistLoadShardedStrategy):
    """Plugged into `dist_checkpointing.load` as its `sharded_strategy`."""

    def __init__(self, tensors: dict[str, StoredTensor]) -> None:
        super().__init__()
        self._tensors = tensors

    def load(self, sharded_state_dict: Any, checkpoint_dir: str | Path) -> Any:
        """Read this rank's part of every tensor, in place where the state dict already holds memory for it."""
        tensors = [value for value in nested_values(sharded_state_dict) if isinstance(value, ShardedTensor)]
        flexible = {tensor.key: tensor for tensor in tensors if tensor.allow_shape_mismatch}
        grouped, flat_mapping, renaming = _replace_state_dict_keys_with_sharded_keys(sharded_state_dict)
        torch_state_dict = mcore_to_pyt_state_dict(grouped, is_loading=True)
        planner = MCoreLoadPlanner(
            shapes_validation_sharded_tensors=[tensor for tensor in tensors if not tensor.allow_shape_mismatch],
            allow_shape_mismatch_sharded_tensors=flexible,
        )
        reader = Reader(Path(checkpoint_dir), self._tensors)
        load_torch_state_dict(torch_state_dict, storage_reader=reader, planner=planner)
        loaded = {key: _unwrap_pyt_sharded_tensor(value) for key, value in torch_state_dict.items()}
        nested = _replace_sharded_keys_with_state_dict_keys(loaded, flat_mapping, renaming)
        _restore_dict_types(nested, sharded_state_dict)
        return nested


class OwnCommonState(LoadCommonStrategy):
    """Stands in for common.pt: the values that no tensor carries are those of the running job, not a pickle's."""

    def __init__(self, common: dict[str, Any]) -> None:
        self._common = common

    def load_common(self, checkpoint_dir: str | Path) -> dict[str, Any]:
        """The running job's values."""
        return self._common

    def load_sharded_objects(self, sharded_objects_state_dict: Any, checkpoint_dir: str | Path) -> Any:
        """There are none."""
        raise NotImplementedError("sharded objects are pickles; a checkpoint of ours has none")

    def check_backend_compatibility(self, loaded_backend: Any) -> None:
        """Nothing to check: nothing is read."""

    def check_version_compatibility(self, loaded_version: Any) -> None:
        """Nothing to check: nothing is read."""


def _index_of(metadata: Metadata, written: list[tuple[str, dict[str, Any]]]) -> dict[str, Any]:
    tensors: dict[str, Any] = {}
    num_planned = 0
    for key, tensor in metadata.state_dict_metadata.items():
        assert isinstance(tensor, TensorStorageMetadata), f"{key}: only tensors are saved"
        dtype = str(tensor.properties.dtype).removeprefix("torch.")
        tensors[key] = {"dtype": dtype, "shape": list(tensor.size), "chunks": []}
        num_planned += len(tensor.chunks)
    if len(written) != num_planned:
        raise OSError(f"{len(written)} of {num_planned} parts of tensors were written")
    for name, chunk in written:
        entry = {"file": name, **{field: chunk[field] for field in _CHUNK_FIELDS}}
        tensors[chunk["key"]]["chunks"].append(entry)
    return tensors


_CHUNK_FIELDS = ("offsets", "shape", "start_bytes", "length_bytes", "checksum")


def _result(name: str, chunk: dict[str, Any]) -> WriteResult:
    return WriteResult(
        index=MetadataIndex(chunk["key"], chunk["offsets"], chunk["index"]),
        size_in_bytes=chunk["length_bytes"],
        storage_data=_StorageInfo(name, chunk["start_bytes"], chunk["length_bytes"]),
    )
