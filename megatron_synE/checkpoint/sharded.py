"""Save and load a training run: weights, optimizer, random number generators, and the trainer's own state.

What holds:

- A checkpoint is complete or absent (see `layout`): `latest` only ever names one whose files are all on disk.
- It loads under any tensor, pipeline, virtual-pipeline and data parallel sizes, and from the plain into the distributed
  optimizer and back: tensors are stored whole, by name. At the same layout everything is restored bit for bit; the
  generators' states are restored at the same layout only.
- Loading runs no pickle: `.metadata` and `common.pt`, which megatron-core's format asks for, are written for other
  tools and never opened. Weights are read with `torch.load(weights_only=True)`, everything else is JSON and, for the
  generators, safetensors. Transformer Engine's extra state (FP8 scales) is a pickle, so it is not stored: it is
  measured anew in the first steps after a resume.
- The model and the optimizer are handed in and filled in place; nothing is built here.
"""

from __future__ import annotations

import dataclasses
import importlib.metadata
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from megatron.core import dist_checkpointing, parallel_state
from megatron.core.dist_checkpointing.core import CheckpointingException
from megatron.core.dist_checkpointing.dict_utils import extract_matching_values, nested_values
from megatron.core.dist_checkpointing.mapping import (
    LocalNonpersistentObject,
    ShardedBase,
    ShardedObject,
    ShardedTensor,
)
from megatron.core.dist_checkpointing.strategies.async_utils import AsyncCallsQueue, AsyncRequest
from megatron.core.distributed import DistributedDataParallel
from torch.distributed.checkpoint import CheckpointException

from megatron_synE.checkpoint import layout, optimizer_state, rng
from megatron_synE.checkpoint.collective import first_problem, on_rank_zero
from megatron_synE.checkpoint.torch_dist import LoadStrategy, OwnCommonState, SavedTensor, SaveStrategy, read_index
from megatron_synE.config.model import LlamaArchitecture

RNG_KEY = "rng_state"

_RESERVED_KEYS = ("format_version", "megatron_synE_version", "step", "architecture", "layout", "has_optimizer",
                  "optimizer_step")  # fmt: skip
# A tensor of another size cannot be loaded at all; the others change what the weights mean.
_SIZE_FIELDS = ("num_layers", "hidden_size", "ffn_hidden_size", "num_attention_heads", "num_query_groups", "head_dim",
                "vocab_size", "tie_word_embeddings")  # fmt: skip
_MEANING_FIELDS = ("rotary_base", "rope_scaling", "layernorm_epsilon")


@dataclass(frozen=True)
class LoadedState:
    """What a checkpoint holds beside the tensors that were loaded in place."""

    step: int
    """Training steps done."""
    state: dict[str, Any]
    """state.json: the trainer's own keys and those of `layout.read_state`."""
    rng_state: rng.RngState | None
    """For `rng.restore_rng_state`; None when there is none, or the layout is another."""
    has_optimizer: bool
    """Whether the optimizer was restored; False for weights only."""


def save_checkpoint(
    root: str | Path,
    *,
    step: int,
    architecture: LlamaArchitecture,
    model_chunks: Sequence[torch.nn.Module],
    optimizer: Any | None,
    rng_state: rng.RngState | None,
    state: Mapping[str, Any],
    keep: int | None = None,
) -> Path:
    """Write `{root}/step_XXXXXXXX`, move `latest` to it, then delete all but the newest `keep`. Called by all ranks.

    Args:
        root: directory that all ranks see.
        step: training steps done; a checkpoint of the same step is replaced.
        architecture: sizes of the model, for the check at loading and for `tools/convert_checkpoint.py`.
        model_chunks: this rank's GPTModels (one for each virtual stage), bare or wrapped in DistributedDataParallel.
        optimizer: megatron-core's optimizer, or None for weights only.
        rng_state: from `rng.collect_rng_state`, or None.
        state: JSON-able, equal on all ranks (rank 0's is written): consumed samples, schedule, `stream`, `config` …
        keep: number of checkpoints to keep; None keeps all.

    Raises:
        ValueError: the place cannot be written to, or `state` is not JSON.
        OSError: writing failed on some rank (disk full); earlier checkpoints are untouched.
    """
    request = _prepare_save(Path(root), step, architecture, model_chunks, optimizer, rng_state, state, keep, False)
    with _WriteErrors(Path(root), step):
        request.execute_sync()
    return layout.step_directory(Path(root), step)


class AsyncCheckpointer:
    """Saves while training goes on: one forked process per rank writes, with at most one save in flight.

    Training stands still while the plan is made and GPU memory is copied to the host. On a CPU nothing is copied: the
    fork's copy-on-write memory is the snapshot, which grows to the size of the state as training overwrites it. The
    checkpoint becomes visible in the `poll` that finds all ranks' writers done; a run that dies before has the previous
    one.
    """

    def __init__(self) -> None:
        self._queue = AsyncCallsQueue()
        self._target: tuple[Path, int] | None = None

    def save(
        self,
        root: str | Path,
        *,
        step: int,
        architecture: LlamaArchitecture,
        model_chunks: Sequence[torch.nn.Module],
        optimizer: Any | None,
        rng_state: rng.RngState | None,
        state: Mapping[str, Any],
        keep: int | None = None,
    ) -> None:
        """Begin what `save_checkpoint` does; waits first for a save that is still in flight."""
        self.wait()
        request = _prepare_save(Path(root), step, architecture, model_chunks, optimizer, rng_state, state, keep, True)
        self._target = (Path(root), step)
        self._queue.schedule_async_request(request)

    def poll(self) -> bool:
        """Publish the save in flight if all ranks have written it; called by all ranks. True when none is in flight."""
        return self._finish(blocking=False)

    def wait(self) -> None:
        """Wait for the save in flight and publish it; called by all ranks, last before the process ends.

        Raises:
            OSError: writing failed on some rank.
        """
        self._finish(blocking=True)

    def _finish(self, blocking: bool) -> bool:
        if self._target is None:
            return True
        with _WriteErrors(*self._target):
            self._queue.maybe_finalize_async_calls(blocking=blocking)
        if self._queue.get_num_unfinalized_calls() == 0:
            self._target = None
        return self._target is None


def load_checkpoint(
    path: str | Path,
    *,
    architecture: LlamaArchitecture,
    model_chunks: Sequence[torch.nn.Module],
    optimizer: Any | None = None,
    weights_only: bool = False,
) -> LoadedState:
    """Fill the model, and the optimizer if given, from the checkpoint at `path` (or the latest under it).

    Called by all ranks. With `weights_only`, or when the checkpoint has no optimizer (an imported model), the
    optimizer's main parameters are set from the weights and its moments stay as they are.

    Raises:
        ValueError: no checkpoint, a damaged one, or one of another model; names the file or the field.
    """
    directory = layout.resolve(path)
    state = layout.read_state(directory)
    layout.check_files(directory)
    index = read_index(directory)
    with_optimizer = optimizer is not None and not weights_only and bool(state["has_optimizer"])
    _check_architecture(directory, state["architecture"], architecture, sizes_only=not with_optimizer)
    same_layout = state["layout"] == _layout()

    _finish_param_gather(model_chunks)  # or one that is under way would bring old weights back
    wanted = _model_state(model_chunks)
    if with_optimizer:
        optimizer_state.allocate_state(optimizer)
        wanted["optimizer"] = optimizer_state.sharded_state_dict(optimizer, wanted, is_loading=True)
    if same_layout and RNG_KEY in index:
        wanted[RNG_KEY] = _rng_tensor(torch.zeros(index[RNG_KEY].shape[1], dtype=torch.uint8))
    _take_main_params_from_weights(wanted, index)
    loaded = _load_tensors(directory, wanted, index)

    for number, chunk in enumerate(model_chunks):
        missing, unexpected = _bare(chunk).load_state_dict(loaded[_chunk_key(number)], strict=False)
        assert not unexpected and all(key.endswith("_extra_state") for key in missing), (missing, unexpected)
    if with_optimizer:
        optimizer_state.load_state_dict(optimizer, loaded["optimizer"], state["optimizer_step"])
    elif optimizer is not None:
        optimizer.reload_model_params()
    packed_rng = loaded.get(RNG_KEY)
    return LoadedState(
        step=state["step"],
        state=state,
        rng_state=None if packed_rng is None else rng.unpack(packed_rng.view(-1)),
        has_optimizer=with_optimizer,
    )


def save_tensors(root: str | Path, *, step: int, tensors: Mapping[str, torch.Tensor], architecture: LlamaArchitecture,
                 state: Mapping[str, Any]) -> Path:  # fmt: skip
    """Write a weights-only checkpoint of whole tensors under their stored names, in a world of one process.

    Args:
        tensors: megatron-core's names, as `hf.mapping` lists them.

    Raises:
        ValueError, OSError: as `save_checkpoint`.
    """
    assert torch.distributed.get_world_size() == 1, "whole tensors are written by one process"
    sharded = {key: ShardedTensor.from_rank_offsets(key, tensor) for key, tensor in tensors.items()}
    request = _prepare_tensors(Path(root), step, architecture, sharded, None, state, None, in_child=False)
    with _WriteErrors(Path(root), step):
        request.execute_sync()
    return layout.step_directory(Path(root), step)


def _prepare_save(root: Path, step: int, architecture: LlamaArchitecture, model_chunks: Sequence[torch.nn.Module],
                  optimizer: Any | None, rng_state: rng.RngState | None, state: Mapping[str, Any], keep: int | None,
                  in_child: bool) -> AsyncRequest:  # fmt: skip
    _finish_param_gather(model_chunks)
    sharded = _model_state(model_chunks)
    if optimizer is not None:
        optimizer_state.allocate_state(optimizer)
        sharded["optimizer"] = optimizer_state.sharded_state_dict(optimizer, sharded, is_loading=False)
    if rng_state is not None:
        sharded[RNG_KEY] = _rng_tensor(rng.pack(rng_state))
    return _prepare_tensors(root, step, architecture, sharded, optimizer, state, keep, in_child)


def _prepare_tensors(root: Path, step: int, architecture: LlamaArchitecture, sharded: dict[str, Any],
                     optimizer: Any | None, state: Mapping[str, Any], keep: int | None,
                     in_child: bool) -> AsyncRequest:  # fmt: skip
    clash = sorted(set(state) & set(_RESERVED_KEYS))
    if clash:
        raise ValueError(f"state: {', '.join(clash)} are set by the checkpoint itself; leave them out")
    description = {
        "format_version": layout.FORMAT_VERSION,
        "megatron_synE_version": _own_version(),
        "step": step,
        "architecture": dataclasses.asdict(architecture),
        "layout": _layout(),
        "has_optimizer": optimizer is not None,
        "optimizer_step": None if optimizer is None else optimizer_state.read_step(optimizer),
        **state,
    }

    state_json = layout.to_json(layout.STATE_FILE, description)  # now: training goes on while a child writes

    def publish() -> None:
        directory = layout.temporary_directory(root, step)
        layout.write_text(directory / layout.STATE_FILE, state_json)
        layout.write_file_list(directory)
        layout.publish(root, step, keep)

    on_rank_zero(lambda: layout.prepare(root, step))
    request = dist_checkpointing.save(
        sharded,
        str(layout.temporary_directory(root, step)),
        sharded_strategy=SaveStrategy(in_child),
        validate_access_integrity=False,  # torch's planner checks that the chunks cover each tensor once
        async_sharded_save=True,
    )
    request.add_finalize_fn(lambda: on_rank_zero(publish))
    return request


def _load_tensors(directory: Path, wanted: dict[str, Any], index: dict[str, SavedTensor]) -> dict[str, Any]:
    _, common = extract_matching_values(wanted, lambda v: isinstance(v, ShardedBase | LocalNonpersistentObject))
    _check_tensors(directory, wanted, index)
    try:
        return dist_checkpointing.load(
            wanted,
            str(directory),
            sharded_strategy=LoadStrategy(),
            common_strategy=OwnCommonState(common),
            validate_access_integrity=False,
        )
    except (CheckpointException, CheckpointingException) as error:
        raise ValueError(f"{directory}: damaged, cannot be read ({_cause(error)}); use another checkpoint") from error


def _check_tensors(directory: Path, wanted: dict[str, Any], index: dict[str, SavedTensor]) -> None:
    """Names and shapes of what this rank wants, before megatron-core trips over them one by one."""
    found = []
    for value in nested_values(wanted):
        if not isinstance(value, ShardedBase):
            continue
        if value.key not in index:
            found.append(f"no tensor {value.key}")
        elif isinstance(value, ShardedTensor):
            saved = index[value.key].shape
            compared = slice(1, None) if value.allow_shape_mismatch else slice(None)  # rows: the padded vocabulary
            if tuple(value.global_shape)[compared] != saved[compared]:
                found.append(f"{value.key} has shape {saved}, the model wants {tuple(value.global_shape)}")
    problem = first_problem(f"{directory}: " + "; ".join(found[:5]) if found else "")
    if problem:
        raise ValueError(f"{problem}; this is a checkpoint of another model, check the fields of `model`")


def _check_architecture(directory: Path, saved: dict[str, Any], own: LlamaArchitecture, sizes_only: bool) -> None:
    running = {**dataclasses.asdict(own), "head_dim": own.head_dim}
    saved = {**saved, "head_dim": saved.get("kv_channels") or saved["hidden_size"] // saved["num_attention_heads"]}
    names = _SIZE_FIELDS if sizes_only else _SIZE_FIELDS + _MEANING_FIELDS
    differing = [f"{name} is {saved.get(name)}, this run has {running[name]}" for name in names
                 if saved.get(name) != running[name]]  # fmt: skip
    if differing:
        raise ValueError(
            f"{directory / layout.STATE_FILE}: a checkpoint of another model: {'; '.join(differing)}; "
            "set the fields of `model` to those of the checkpoint, or choose another checkpoint"
        )


def _model_state(model_chunks: Sequence[torch.nn.Module]) -> dict[str, Any]:
    """Every parameter of this rank under its global name; Transformer Engine's pickles are left out."""
    state = {}
    for number, chunk in enumerate(model_chunks):
        sharded = _bare(chunk).sharded_state_dict(metadata={"non_homogeneous_layers": True})
        _, state[_chunk_key(number)] = extract_matching_values(sharded, lambda v: isinstance(v, ShardedObject))
    return state


def _bare(chunk: torch.nn.Module) -> Any:
    """The model inside DistributedDataParallel and Float16Module."""
    bare: Any = chunk
    while hasattr(bare, "module"):
        bare = bare.module
    return bare


def _chunk_key(number: int) -> str:
    return f"model{number}"


def _take_main_params_from_weights(state: dict[str, Any], index: dict[str, SavedTensor]) -> None:
    """A plain fp32 optimizer has no main parameters apart from the weights, and saved none."""
    for value in nested_values(state):
        if isinstance(value, ShardedBase) and value.key not in index:
            value.key = value.key.removeprefix(optimizer_state.MAIN_PARAM_PREFIX)


def _finish_param_gather(model_chunks: Sequence[torch.nn.Module]) -> None:
    """With overlapped parameter gathering the weights of other ranks' shards arrive only in the next forward pass."""
    for chunk in model_chunks:
        if isinstance(chunk, DistributedDataParallel) and chunk.ddp_config.overlap_param_gather:
            chunk.start_param_sync(force_sync=True)


def _rng_tensor(packed: torch.Tensor) -> ShardedTensor:
    """This rank's row of a table of all ranks' states, filled up with zeros to the longest."""
    rank, world_size = torch.distributed.get_rank(), torch.distributed.get_world_size()
    lengths: list[Any] = [None] * world_size
    torch.distributed.all_gather_object(lengths, packed.numel())
    row = torch.zeros(1, max(lengths), dtype=torch.uint8)
    row[0, : packed.numel()] = packed
    return ShardedTensor.from_rank_offsets(RNG_KEY, row, (0, rank, world_size))


def _layout() -> dict[str, int]:
    return {
        "world_size": torch.distributed.get_world_size(),
        "tensor_model_parallel_size": parallel_state.get_tensor_model_parallel_world_size(),
        "pipeline_model_parallel_size": parallel_state.get_pipeline_model_parallel_world_size(),
        "virtual_pipeline_model_parallel_size": parallel_state.get_virtual_pipeline_model_parallel_world_size() or 1,
        "context_parallel_size": parallel_state.get_context_parallel_world_size(),
        "data_parallel_size": parallel_state.get_data_parallel_world_size(),
    }


def _own_version() -> str:
    try:
        return importlib.metadata.version("megatron-synE")
    except importlib.metadata.PackageNotFoundError:  # run from the source tree
        return "unknown"


class _WriteErrors:
    """Turns torch's report of all ranks' failures into one line, and frees the disk of the half-written files."""

    def __init__(self, root: Path, step: int) -> None:
        self._root, self._step = root, step

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        if isinstance(error, CheckpointException):
            if torch.distributed.get_rank() == 0:
                shutil.rmtree(layout.temporary_directory(self._root, self._step), ignore_errors=True)
            cause = first_problem(_cause(error) if error.failures else "")  # only the coordinator knows it
            raise OSError(
                f"checkpoint.save: step {self._step} could not be written to {self._root} ({cause}); "
                "earlier checkpoints are untouched; make room or choose another directory"
            ) from error


def _cause(error: BaseException) -> str:
    failures = getattr(error, "failures", None) or {}
    causes = {str(failure[0]) for failure in failures.values()}
    return "; ".join(sorted(causes)) or str(error).splitlines()[0] if str(error) else type(error).__name__
