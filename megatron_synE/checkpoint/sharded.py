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

import contextlib
import dataclasses
import importlib.metadata
import io
import shutil
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NotRequired, TypedDict, Unpack

import torch
from megatron.core import dist_checkpointing
from megatron.core.dist_checkpointing.core import CheckpointingException
from megatron.core.dist_checkpointing.dict_utils import extract_matching_values, nested_values
from megatron.core.dist_checkpointing.mapping import (
    LocalNonpersistentObject,
    ShardedBase,
    ShardedTensor,
    is_main_replica,
)
from megatron.core.dist_checkpointing.state_dict_utils import save_preprocess
from megatron.core.dist_checkpointing.strategies.async_utils import AsyncCallsQueue, AsyncRequest
from megatron.core.dist_checkpointing.strategies.common import COMMON_STATE_FNAME
from torch.distributed.checkpoint import CheckpointException

from megatron_synE.checkpoint import files, layout, optimizer_state, rng
from megatron_synE.checkpoint.collective import first_problem, on_rank_zero, together
from megatron_synE.checkpoint.contents import FORMAT, check_architecture, quick_check
from megatron_synE.checkpoint.files import DamagedCheckpoint
from megatron_synE.checkpoint.finite import check_finite
from megatron_synE.checkpoint.index import StoredTensor
from megatron_synE.checkpoint.model_state import (
    RNG_KEY,
    bare,
    chunk_key,
    finish_param_gather,
    layout_of_run,
    model_state,
    rng_tensor,
    take_main_params_from_weights,
)
from megatron_synE.checkpoint.state import FORMAT_VERSION
from megatron_synE.checkpoint.torch_dist import LoadStrategy, OwnCommonState, Writer
from megatron_synE.config.model import LlamaArchitecture

_RESERVED_KEYS = ("format_version", "megatron_synE_version", "step", "architecture", "layout", "has_optimizer",
                  "optimizer_step")  # fmt: skip

_RECORD_BYTES = 3000
"""What a record of torch.save, its place in `.metadata` and in index.json take beside the tensor, at most."""
_SMALL_FILES_BYTES = 2**20
"""state.json and the like."""


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


class SaveOptions(TypedDict):
    """What a save takes beside the folder, by keyword. Equal on all ranks, but for the model, optimizer and RNG."""

    step: int
    """Training steps done; a checkpoint of the same step is replaced."""
    architecture: LlamaArchitecture
    """Sizes of the model, for the check at loading and for `tools/convert_checkpoint.py`."""
    model_chunks: Sequence[torch.nn.Module]
    """This rank's GPTModels (one for each virtual stage), bare or wrapped in DistributedDataParallel."""
    optimizer: Any | None
    """megatron-core's optimizer, or None for weights only."""
    rng_state: rng.RngState | None
    """From `rng.collect_rng_state`, or None."""
    state: Mapping[str, Any]
    """JSON-able (rank 0's is written): consumed samples, schedule, `stream`, `config` …"""
    keep: NotRequired[int | None]
    """Number of checkpoints to keep; None keeps all."""
    keep_every_steps: NotRequired[int | None]
    """Checkpoints whose step it divides are kept besides."""


def save_checkpoint(root: str | Path, **options: Unpack[SaveOptions]) -> Path:
    """Write `{root}/step_XXXXXXXX`, move `latest` to it, then delete old ones. Called by all ranks.

    Args:
        root: directory that all ranks see.
        options: see `SaveOptions`.

    Raises:
        ValueError: the place cannot be written to, or `state` is not JSON.
        NonFiniteState: weights or optimizer state hold NaN or infinity; nothing was written.
        OSError: there is no room, or writing failed on some rank; earlier checkpoints are untouched.
    """
    root = Path(root)
    with _no_remains(root, options["step"]):
        pending = _begin(root, options)
        pending.writer.write()
        pending.publish()
    return layout.step_directory(root, options["step"])


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
        self._deletions: list[threading.Thread] = []

    def save(self, root: str | Path, **options: Unpack[SaveOptions]) -> None:
        """Begin what `save_checkpoint` does; waits first for a save that is still in flight.

        Raises:
            As `save_checkpoint`; what fails in the background is raised by `poll` or `wait`.
        """
        self.wait()
        root = Path(root)
        with _no_remains(root, options["step"]):
            pending = _begin(root, options, self._discard)
            request = AsyncRequest(pending.writer.write_in_child, (), [pending.publish])
            self._queue.schedule_async_request(request)
        self._target = (root, options["step"])

    def poll(self) -> bool:
        """Publish the save in flight if all ranks have written it; called by all ranks. True when none is in flight."""
        return self._finish(blocking=False)

    def wait(self) -> None:
        """Wait for the save in flight and publish it; called by all ranks, last before the process ends.

        Raises:
            OSError: writing failed on some rank.
        """
        self._finish(blocking=True)
        while self._deletions:
            self._deletions.pop().join()

    def _discard(self, directory: Path) -> None:
        """Delete an old checkpoint while training goes on: it takes as long as all else that a publication does."""
        self._deletions.append(threading.Thread(target=shutil.rmtree, args=(directory,)))
        self._deletions[-1].start()

    def _finish(self, blocking: bool) -> bool:
        if self._target is None:
            return True
        target = self._target
        try:
            with _no_remains(*target):
                self._queue.maybe_finalize_async_calls(blocking=blocking)
        finally:
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
        ValueError: no checkpoint, or one of another model; names the field.
        DamagedCheckpoint: names the file, and the field or tensor; what was loaded by then is in the model.
    """
    contents = together(lambda: quick_check(path))
    directory, state, tensors = contents.directory, contents.state, contents.tensors
    with_optimizer = optimizer is not None and not weights_only and bool(state["has_optimizer"])
    check_architecture(contents, architecture, sizes_only=not with_optimizer)
    same_layout = state["layout"] == layout_of_run()

    finish_param_gather(model_chunks)  # or one that is under way would bring old weights back
    wanted = model_state(model_chunks)
    if with_optimizer:
        optimizer_state.allocate_state(optimizer)
        wanted["optimizer"] = optimizer_state.sharded_state_dict(optimizer, wanted, is_loading=True)
    if same_layout and RNG_KEY in tensors and len(tensors[RNG_KEY].shape) == 2:
        wanted[RNG_KEY] = rng_tensor(torch.zeros(tensors[RNG_KEY].shape[1], dtype=torch.uint8))
    take_main_params_from_weights(wanted, tensors)
    loaded = _load_tensors(directory, wanted, tensors)

    packed = loaded.get(RNG_KEY)
    rng_state = together(lambda: None if packed is None else rng.unpack(packed.view(-1)))
    for number, chunk in enumerate(model_chunks):
        missing, unexpected = bare(chunk).load_state_dict(loaded[chunk_key(number)], strict=False)
        assert not unexpected and all(key.endswith("_extra_state") for key in missing), (missing, unexpected)
    if with_optimizer:
        optimizer_state.load_state_dict(optimizer, loaded["optimizer"], state["optimizer_step"])
    elif optimizer is not None:
        optimizer.reload_model_params()
    return LoadedState(
        step=state["step"],
        state=state,
        rng_state=rng_state,
        has_optimizer=with_optimizer,
    )


@dataclass(frozen=True)
class _PendingSave:
    """A save that is planned: what is still to be written, and how it becomes a checkpoint."""

    root: Path
    step: int
    writer: Writer
    state_json: str
    common: bytes
    """common.pt: what no tensor carries, for megatron-core's own readers."""
    keep: int | None
    keep_every_steps: int | None
    discard: Callable[[Path], object] | None
    """What deletes old checkpoints; None does it at once."""

    def publish(self) -> None:
        """Once all ranks' writers have ended: everything that rank 0 adds, then the new name. Called by all ranks.

        Raises:
            OSError: on all ranks, where any failed.
        """
        is_main = torch.distributed.get_rank() == 0
        reports: list[Any] | None = [None] * torch.distributed.get_world_size() if is_main else None
        torch.distributed.gather_object(self.writer.report(), reports)
        on_rank_zero(lambda: self._publish(reports or []))

    def _publish(self, reports: list[dict[str, Any]]) -> None:
        directory = layout.temporary_directory(self.root, self.step)
        try:
            checksums = self.writer.finish_all(reports)
            (directory / COMMON_STATE_FNAME).write_bytes(self.common)
            files.write_text(directory / files.METADATA_FILE, files.to_json(files.METADATA_FILE, FORMAT))
            files.write_text(directory / files.STATE_FILE, self.state_json)
            files.write_file_list(directory, checksums)
            layout.publish(self.root, self.step, self.keep, self.keep_every_steps, self.discard)
        except OSError as error:
            raise OSError(
                f"checkpoint.save: step {self.step} could not be written to {self.root} ({error}); "
                "earlier checkpoints are untouched; make room or choose another directory"
            ) from error


def _begin(root: Path, options: SaveOptions, discard: Callable[[Path], object] | None = None) -> _PendingSave:
    step, model_chunks = options["step"], options["model_chunks"]
    optimizer, rng_state = options["optimizer"], options["rng_state"]
    finish_param_gather(model_chunks)
    sharded = model_state(model_chunks)
    if optimizer is not None:
        optimizer_state.allocate_state(optimizer)
        sharded["optimizer"] = optimizer_state.sharded_state_dict(optimizer, sharded, is_loading=False)
    if rng_state is not None:
        sharded[RNG_KEY] = rng_tensor(rng.pack(rng_state))
    sharded, common = save_preprocess(sharded, validate_access_integrity=False)
    check_finite(sharded, step)
    common_file = io.BytesIO()
    torch.save(common, common_file)
    state_json = _state_json(options)  # now: training goes on while a child writes
    needed_bytes = _bytes_on_disk(sharded)
    on_rank_zero(lambda: layout.prepare(root, step, needed_bytes))
    writer = Writer(layout.temporary_directory(root, step))
    writer.plan(sharded)
    return _PendingSave(
        root,
        step,
        writer,
        state_json,
        common_file.getvalue(),
        options.get("keep"),
        options.get("keep_every_steps"),
        discard,
    )


def _state_json(options: SaveOptions) -> str:
    state, optimizer = options["state"], options["optimizer"]
    clash = sorted(set(state) & set(_RESERVED_KEYS))
    if clash:
        raise ValueError(f"state: {', '.join(clash)} are set by the checkpoint itself; leave them out")
    description = {
        "format_version": FORMAT_VERSION,
        "megatron_synE_version": own_version(),
        "step": options["step"],
        "architecture": dataclasses.asdict(options["architecture"]),
        "layout": layout_of_run(),
        "has_optimizer": optimizer is not None,
        "optimizer_step": None if optimizer is None else optimizer_state.read_step(optimizer),
        **state,
    }
    return files.to_json(files.STATE_FILE, description)


def _bytes_on_disk(sharded: Mapping[str, Any]) -> int:
    """Size of a checkpoint before it is written: what all ranks write, each tensor once. Called by all ranks."""
    tensors = [value for value in nested_values(sharded) if isinstance(value, ShardedTensor)]
    own = sum(tensor.data.nbytes + _RECORD_BYTES for tensor in tensors if is_main_replica(tensor.replica_id))
    totals: list[Any] = [None] * torch.distributed.get_world_size()
    torch.distributed.all_gather_object(totals, own)
    return sum(totals) + _SMALL_FILES_BYTES


def _load_tensors(directory: Path, wanted: dict[str, Any], tensors: Mapping[str, StoredTensor]) -> dict[str, Any]:
    _, common = extract_matching_values(wanted, lambda v: isinstance(v, ShardedBase | LocalNonpersistentObject))
    _check_tensors(directory, wanted, tensors)
    try:
        return dist_checkpointing.load(
            wanted,
            str(directory),
            sharded_strategy=LoadStrategy(dict(tensors)),
            common_strategy=OwnCommonState(common),
            validate_access_integrity=False,
        )
    except (CheckpointException, CheckpointingException) as error:
        failures = getattr(error, "failures", None) or {}
        found = next((failure for failure, _ in failures.values() if isinstance(failure, DamagedCheckpoint)), None)
        if found is not None:
            raise DamagedCheckpoint(str(found)) from None
        raise DamagedCheckpoint(f"{directory}: damaged, cannot be read ({_cause(error)}); use another one") from error


def _check_tensors(directory: Path, wanted: dict[str, Any], tensors: Mapping[str, StoredTensor]) -> None:
    """Names and shapes of what this rank wants, before megatron-core trips over them one by one."""
    found = []
    for value in nested_values(wanted):
        if not isinstance(value, ShardedBase):
            continue
        if value.key not in tensors:
            found.append(f"no tensor {value.key}")
        elif isinstance(value, ShardedTensor):
            saved = tensors[value.key].shape
            compared = slice(1, None) if value.allow_shape_mismatch else slice(None)  # rows: the padded vocabulary
            if tuple(value.global_shape)[compared] != saved[compared]:
                found.append(f"{value.key} has shape {saved}, the model wants {tuple(value.global_shape)}")
    problem = first_problem(f"{directory}: " + "; ".join(found[:5]) if found else "")
    if problem:
        raise ValueError(f"{problem}; this is a checkpoint of another model, check the fields of `model`")


def own_version() -> str:
    """Of this package, for state.json."""
    try:
        return importlib.metadata.version("megatron-synE")
    except importlib.metadata.PackageNotFoundError:  # run from the source tree
        return "unknown"


@contextlib.contextmanager
def _no_remains(root: Path, step: int) -> Iterator[None]:
    """A save that fails leaves no half-written files. What fails, fails on all ranks."""
    try:
        yield
    except (Exception, CheckpointException) as error:
        if torch.distributed.get_rank() == 0:
            shutil.rmtree(layout.temporary_directory(root, step), ignore_errors=True)
        if isinstance(error, CheckpointException):  # of the plan; it is no Exception
            raise RuntimeError(f"checkpoint.save: step {step} could not be planned ({_cause(error)})") from error
        raise


def _cause(error: BaseException) -> str:
    failures = getattr(error, "failures", None) or {}
    causes = {str(failure[0]) for failure in failures.values()}
    return "; ".join(sorted(causes)) or str(error).splitlines()[0] if str(error) else type(error).__name__
