"""megatron-core's torch_dist format, written without helper processes and read without pickle.

The files are stock: `*.distcp` with one `torch.save` record per chunk, `.metadata` and `common.pt`, so megatron-core's
and torch's own tools read a checkpoint of ours. Two things differ from megatron-core's strategies:

- **Writing** happens in this process (threads), or for an asynchronous save in one forked child, whose copy-on-write
  memory is the snapshot. megatron-core's writer starts a manager process and a child per file for the same work.
- **Reading** uses `index.json`, written beside `.metadata` with the same content. `.metadata` and `common.pt`, which
  are pickles, are never opened. Chunks are read with `torch.load(weights_only=True)`, torch's unpickler that builds
  tensors and nothing else. Sharded objects, which megatron-core would unpickle, are neither written nor read.
"""

from __future__ import annotations

import dataclasses
import json
from collections import defaultdict
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from megatron.core.dist_checkpointing.dict_utils import nested_values
from megatron.core.dist_checkpointing.mapping import ShardedTensor
from megatron.core.dist_checkpointing.strategies.async_utils import AsyncRequest
from megatron.core.dist_checkpointing.strategies.base import LoadCommonStrategy
from megatron.core.dist_checkpointing.strategies.state_dict_saver import (
    save_state_dict_async_finalize,
    save_state_dict_async_plan,
)
from megatron.core.dist_checkpointing.strategies.torch import (
    MCoreLoadPlanner,
    MCoreSavePlanner,
    TorchDistLoadShardedStrategy,
    TorchDistSaveShardedStrategy,
    _replace_sharded_keys_with_state_dict_keys,
    _replace_state_dict_keys_with_sharded_keys,
    _restore_dict_types,
    _unwrap_pyt_sharded_tensor,
    mcore_to_pyt_state_dict,
)
from torch.distributed.checkpoint import FileSystemReader, FileSystemWriter
from torch.distributed.checkpoint import load as load_torch_state_dict
from torch.distributed.checkpoint.api import _wrap_exception
from torch.distributed.checkpoint.filesystem import _StorageInfo
from torch.distributed.checkpoint.metadata import (
    ChunkStorageMetadata,
    Metadata,
    MetadataIndex,
    StorageMeta,
    TensorProperties,
    TensorStorageMetadata,
)
from torch.distributed.checkpoint.planner import LoadPlan
from torch.distributed.checkpoint.storage import WriteResult
from torch.futures import Future

from megatron_synE.checkpoint.layout import INDEX_FILE, read_json, write_text

WRITER_THREADS = 2
"""Files per rank, written at the same time."""
READER_THREADS = 4
"""Files that a rank reads at the same time; each holds one chunk in memory."""


class Writer(FileSystemWriter):
    """torch's file writer, cut into a planning half and a writing half that may run in a forked child."""

    def __init__(self, directory: Path) -> None:
        super().__init__(directory, thread_count=WRITER_THREADS, sync_files=True)
        self._results_path = directory / f".results_{torch.distributed.get_rank()}.json"
        self._planned: tuple[Any, Any] | None = None

    def prepare_write_data(self, plan: Any, planner: Any) -> None:
        """Keep the plan; called by megatron-core once all ranks have agreed on it."""
        self._planned = (plan, planner)

    def write_planned(self) -> None:
        """Write this rank's files. What happened, also an error, goes to a file: the parent of a fork reads it."""
        assert self._planned is not None
        try:
            results = self.write_data(*self._planned).wait()
            content: dict[str, Any] = {"written": [_describe(result) for result in results]}
        except Exception as error:
            content = {"error": f"{type(error).__name__}: {error}"}
        with open(self._results_path, "w", encoding="utf-8") as file:
            json.dump(content, file)

    def write_planned_in_child(self) -> None:
        """`write_planned` after a fork: OpenMP's threads exist only in the parent."""
        torch.set_num_threads(1)
        self.write_planned()

    def retrieve_write_results(self) -> Any:
        """This rank's results, or its error in the form that torch sends to the coordinator."""
        try:
            content = json.loads(self._results_path.read_text(encoding="utf-8"))
            self._results_path.unlink()
        except (OSError, json.JSONDecodeError):
            content = {"error": "the writing process ended before it had written everything"}
        self._planned = None
        if "error" in content:
            return _wrap_exception(OSError(content["error"]))
        return [_result(entry) for entry in content["written"]]

    def finish(self, metadata: Metadata, results: list[list[WriteResult]]) -> None:
        """On the coordinator: `.metadata` as torch writes it, and the same as JSON."""
        super().finish(metadata, results)
        write_text(Path(self.path) / INDEX_FILE, json.dumps({"tensors": _index_of(metadata)}))


class SaveStrategy(TorchDistSaveShardedStrategy):
    """Plugged into `dist_checkpointing.save` as its `sharded_strategy`."""

    def __init__(self, in_child: bool = False) -> None:
        super().__init__("torch_dist", 1)
        self._in_child = in_child

    def async_save(self, sharded_state_dict: Any, checkpoint_dir: str | Path) -> AsyncRequest:
        """Plan, copy what lies on a GPU to the host, and return what is left to do."""
        grouped, _, _ = _replace_state_dict_keys_with_sharded_keys(sharded_state_dict, keep_only_main_replica=True)
        for shards in grouped.values():
            for shard in shards:
                shard.data = shard.data.detach().cpu()
        writer = Writer(Path(checkpoint_dir))
        planned, *_ = save_state_dict_async_plan(
            mcore_to_pyt_state_dict(grouped, is_loading=False),
            writer,
            planner=MCoreSavePlanner(dedup_replicated_tensors=False, flatten_state_dict=False),
        )
        write = writer.write_planned_in_child if self._in_child else writer.write_planned
        return AsyncRequest(write, (), [lambda: save_state_dict_async_finalize(*planned)])


@dataclass(frozen=True)
class SavedTensor:
    """What the index says of one tensor."""

    shape: tuple[int, ...]
    dtype: torch.dtype


class Reader(FileSystemReader):
    """torch's file reader, with the metadata from index.json instead of a pickle."""

    def read_data(self, plan: LoadPlan, planner: Any) -> Future[None]:
        """Read the files that the plan names, several at a time."""
        by_file = defaultdict(list)
        for item in plan.items:
            by_file[self.storage_data[item.storage_index].relative_path].append(item)
        read_file = super().read_data
        with ThreadPoolExecutor(READER_THREADS) as pool:
            list(pool.map(lambda items: read_file(dataclasses.replace(plan, items=items), planner), by_file.values()))
        done: Future[None] = Future()
        done.set_result(None)
        return done

    def read_metadata(self, *args: Any, **kwargs: Any) -> Metadata:
        """Where every chunk lies."""
        return _metadata_of(read_json(Path(self.path) / INDEX_FILE)["tensors"])


class LoadStrategy(TorchDistLoadShardedStrategy):
    """Plugged into `dist_checkpointing.load` as its `sharded_strategy`."""

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
        load_torch_state_dict(torch_state_dict, storage_reader=Reader(checkpoint_dir), planner=planner)
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


def read_index(directory: Path) -> dict[str, SavedTensor]:
    """Name, shape and dtype of all tensors of a checkpoint.

    Raises:
        ValueError: index.json is missing or broken.
    """
    entries = read_json(directory / INDEX_FILE).get("tensors", {})
    return {key: SavedTensor(tuple(entry["shape"]), _dtype(entry["dtype"])) for key, entry in entries.items()}


def _index_of(metadata: Metadata) -> dict[str, Any]:
    tensors: dict[str, Any] = {}
    shapes = {}
    for key, tensor in metadata.state_dict_metadata.items():
        assert isinstance(tensor, TensorStorageMetadata), f"{key}: only tensors are saved"
        dtype = str(tensor.properties.dtype).removeprefix("torch.")
        tensors[key] = {"dtype": dtype, "shape": list(tensor.size), "chunks": []}
        shapes.update({(key, tuple(chunk.offsets)): list(chunk.sizes) for chunk in tensor.chunks})
    for place, stored in metadata.storage_data.items():
        tensors[place.fqn]["chunks"].append(
            {
                "offsets": list(place.offset),
                "shape": shapes[place.fqn, tuple(place.offset)],
                "file": stored.relative_path,
                "start_bytes": stored.offset,
                "length_bytes": stored.length,
            }
        )
    return tensors


def _metadata_of(tensors: dict[str, Any]) -> Metadata:
    described: dict[str, Any] = {}
    stored = {}
    for key, entry in tensors.items():
        chunks = []
        for chunk in entry["chunks"]:
            offsets = torch.Size(chunk["offsets"])
            chunks.append(ChunkStorageMetadata(offsets=offsets, sizes=torch.Size(chunk["shape"])))
            place = MetadataIndex(key, offsets)
            # Only the file's name: an index must not lead out of its directory.
            stored[place] = _StorageInfo(Path(chunk["file"]).name, chunk["start_bytes"], chunk["length_bytes"])
        properties = TensorProperties(dtype=_dtype(entry["dtype"]))
        described[key] = TensorStorageMetadata(properties, torch.Size(entry["shape"]), chunks)
    return Metadata(described, storage_data=stored, storage_meta=StorageMeta())


def _dtype(name: str) -> torch.dtype:
    dtype = getattr(torch, name, None)
    if not isinstance(dtype, torch.dtype):
        raise ValueError(f"{INDEX_FILE}: {name!r} is no dtype; the checkpoint is damaged, use another one")
    return dtype


def _describe(result: WriteResult) -> dict[str, Any]:
    stored = result.storage_data
    return {
        "key": result.index.fqn,
        "offsets": None if result.index.offset is None else list(result.index.offset),
        "index": result.index.index,
        "size_bytes": result.size_in_bytes,
        "file": stored.relative_path,
        "start_bytes": stored.offset,
        "length_bytes": stored.length,
    }


def _result(entry: dict[str, Any]) -> WriteResult:
    return WriteResult(
        index=MetadataIndex(entry["key"], entry["offsets"], entry["index"]),
        size_in_bytes=entry["size_bytes"],
        storage_data=_StorageInfo(entry["file"], entry["start_bytes"], entry["length_bytes"]),
    )
