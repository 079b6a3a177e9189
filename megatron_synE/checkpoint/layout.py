"""How checkpoints lie on disk, and how one becomes visible: complete, or not at all.

    {root}/latest                   one line: the name of the newest complete checkpoint
    {root}/step_00000010/           a complete checkpoint
        state.json                  step, layout, model, and whatever the trainer gave: readable without torch
        files.json                  name, size in bytes and checksum of every other file, and its own checksum
        index.json                  where each tensor's chunks lie, and the checksum of each
        *.distcp, .metadata, …      megatron-core's torch_dist format
    {root}/.step_00000020.tmp/      a save in progress, or what a killed one left; the next save removes it
    {root}/.step_00000010.replaced/ exists only between the two renames that replace a checkpoint of the same step

Order of a save: all files are written and fsynced under `.tmp`; the directory is renamed; `latest` is replaced; only
then old checkpoints are deleted. At every moment `latest` names a complete checkpoint, whatever is killed.
Nothing here needs torch.
"""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from megatron_synE.checkpoint.files import FILES_FILE, STATE_FILE, DamagedCheckpoint, FileList, fsync, write_text
from megatron_synE.checkpoint.files import read_json as read_json
from megatron_synE.checkpoint.state import architecture_of, check_state
from megatron_synE.config.model import LlamaArchitecture

LATEST_FILE = "latest"

_STEP_DIRECTORY = re.compile(r"^step_(\d{8,})$")


def step_directory(root: Path, step: int) -> Path:
    """Final place of the checkpoint of `step`."""
    return root / f"step_{step:08d}"


def temporary_directory(root: Path, step: int) -> Path:
    """Where the checkpoint of `step` is written."""
    return root / f".step_{step:08d}.tmp"


def find_latest(root: str | Path) -> Path | None:
    """The checkpoint to go on from: the first of `resume_candidates`; None where nothing was saved yet.

    Raises:
        DamagedCheckpoint: as `resume_candidates`.
    """
    return next(_complete(Path(root)), None)


def resume_candidates(root: str | Path) -> list[Path]:
    """The complete checkpoints under `root`, the one to go on from first; empty where nothing was saved yet.

    Complete: files.json is intact, and every file has its size. The first is the one that `latest` names, then older
    ones, the newest first, then those with a step beyond it: a run that went back has left them. Where `latest` is
    missing or names nothing that is there, the newest comes first.

    Raises:
        DamagedCheckpoint: something was saved here, but no checkpoint is complete: this is no place to start afresh.
    """
    return list(_complete(Path(root)))


def resume_notes(root: str | Path) -> list[str]:
    """What a person should know before a run resumes from `root`, a line each; empty where all is as expected."""
    root = Path(root)
    first = find_latest(root)
    if first is None:
        return []
    named, notes = _read_latest(root), []
    if named is None:
        notes.append(f"{root / LATEST_FILE}: missing, or not the name of a checkpoint; {first.name} is the newest here")
    elif _present(root / named) is None:
        notes.append(f"{root / LATEST_FILE}: names {named}, which is not there; {first.name} is the newest here")
    for path in _in_order(root):
        problem = _incomplete(path)
        if problem:
            notes.append(f"passed over: {problem}")
        elif path != first and _step(path) > _step(first):
            notes.append(f"{path}: newer than {first.name}, which is gone on from; replaced once its step is reached")
    if not FileList(first).has_checksums:
        notes.append(f"{first}: written without checksums, so damage to its tensors may pass; the next save has them")
    return notes


def checkpoint_directories(root: Path) -> list[Path]:
    """Directories under a checkpoint's name, complete or not, by ascending step."""
    found = [(int(match[1]), path) for path in root.iterdir() if (match := _STEP_DIRECTORY.match(path.name))]
    return [path for _, path in sorted(found)]


def _complete(root: Path) -> Iterator[Path]:
    problems = []
    any_complete = False
    for path in _in_order(root):
        problem = _incomplete(path)
        if problem:
            problems.append(problem)
        else:
            any_complete = True
            yield path
    if not any_complete and (problems or (root / LATEST_FILE).exists()):
        raise DamagedCheckpoint(
            f"{root}: no complete checkpoint is left here ({'; '.join(problems) or 'only the file latest'}); "
            "copy one back, or start afresh in another folder"
        )


def _in_order(root: Path) -> list[Path]:
    """All of `root`'s checkpoints, complete or not, as `resume_candidates` orders them."""
    if not root.is_dir():
        return []
    names = {path.name for path in checkpoint_directories(root)}
    names |= {path.name[1:].removesuffix(".replaced") for path in root.glob(".step_*.replaced")}
    names = {name for name in names if _STEP_DIRECTORY.match(name)}
    paths = [path for name in names if (path := _present(root / name)) is not None]
    paths.sort(key=_step, reverse=True)
    latest = _read_latest(root)
    if latest is not None and latest in names:
        last = _step(Path(latest))
        paths.sort(key=lambda path: _step(path) > last)  # stable: those beyond `latest` go to the end
    return paths


def _present(final: Path) -> Path | None:
    """A checkpoint's directory, or the one that is about to be replaced in its place."""
    return next((path for path in (final, _replaced_directory(final)) if path.is_dir()), None)


def _incomplete(directory: Path) -> str:
    """What a checkpoint lacks, as far as its list of files tells; empty for a complete one."""
    try:
        FileList(directory).check_sizes()
    except DamagedCheckpoint as error:
        return str(error)
    return ""


def _step(path: Path) -> int:
    return int("".join(filter(str.isdigit, path.name)))


def _read_latest(root: Path) -> str | None:
    """The name that `latest` holds; None where there is none, or it is no checkpoint's."""
    try:
        name = (root / LATEST_FILE).read_text(encoding="utf-8", errors="replace").strip()
    except OSError:
        return None
    return name if _STEP_DIRECTORY.match(name) else None


def resolve(path: str | Path) -> Path:
    """A checkpoint's directory, given it or the root that holds it.

    Raises:
        ValueError: there is no checkpoint.
    """
    path = Path(path)
    if (path / STATE_FILE).is_file() or (path / FILES_FILE).is_file():
        return path
    latest = find_latest(path) if path.is_dir() else None
    if latest is None:
        raise ValueError(f"{path}: no checkpoint here; give a step_XXXXXXXX directory, or the one that holds them")
    return latest


def read_state(path: str | Path) -> dict[str, Any]:
    """state.json of the checkpoint at `path` (its directory, or the root: then the latest). Needs no torch.

    Keys written by `save_checkpoint`: `format_version`, `megatron_synE_version`, `step`, `architecture` (sizes
    of the model), `layout` (world and parallel sizes it was saved from), `has_optimizer`, `optimizer_step`; all others
    are the trainer's, among them `config` (the whole job) and `stream`.

    Raises:
        ValueError: no checkpoint, or a format this version does not know.
        DamagedCheckpoint: it has changed, or a field of the checkpoint's own is missing or cannot be.
    """
    directory = resolve(path)
    return check_state(directory / STATE_FILE, FileList(directory).read_json(STATE_FILE))


def read_architecture(path: str | Path) -> LlamaArchitecture:
    """The sizes of the model that the checkpoint at `path` holds. Needs no torch.

    Raises:
        ValueError: as `read_state`.
    """
    directory = resolve(path)
    return architecture_of(directory / STATE_FILE, read_state(directory))


def prepare(root: Path, step: int, needed_bytes: int = 0) -> Path:
    """An empty directory to write the checkpoint of `step` into; removes what killed saves left behind.

    Raises:
        ValueError: the place cannot be written to.
        OSError: with what was left behind gone, it has fewer than `needed_bytes` free.
    """
    try:
        root.mkdir(parents=True, exist_ok=True)
        for leftover in root.glob(".step_*.tmp"):
            shutil.rmtree(leftover)
        for replaced in root.glob(".step_*.replaced"):
            final = root / replaced.name.removeprefix(".").removesuffix(".replaced")
            if final.exists():
                shutil.rmtree(replaced)
            else:
                replaced.rename(final)
        problem = _too_little_room(root, needed_bytes, f"step {step}")
        directory = temporary_directory(root, step)
        if not problem:
            directory.mkdir()
    except OSError as error:
        raise ValueError(f"checkpoint.save: {root} cannot be written to ({error}); choose another one") from None
    if problem:
        raise OSError(problem)
    return directory


def check_place(root: str | Path, needed_bytes: int = 0, field: str = "checkpoint.save") -> None:
    """Whether checkpoints of `needed_bytes` can be written under `root`; makes nothing, for a look before the start.

    What killed saves left behind counts as free: the next save removes it.

    Args:
        field: of the configuration, that names `root`.

    Raises:
        ValueError: the place cannot be written to, or has too little room.
    """
    root = Path(root).absolute()
    existing = next(path for path in (root, *root.parents) if path.exists())
    if not existing.is_dir():
        raise ValueError(f"{field}: {existing} is no directory; choose another one")
    if not os.access(existing, os.W_OK | os.X_OK):
        raise ValueError(f"{field}: {existing} cannot be written to; choose another one, or change its rights")
    leftover_bytes = sum(path.stat().st_size for path in root.glob(".step_*.tmp/*"))
    problem = _too_little_room(existing, needed_bytes - leftover_bytes, "one checkpoint")
    if problem:
        raise ValueError(problem)


def _too_little_room(root: Path, needed_bytes: int, what: str) -> str:
    """What to tell where `root` has fewer bytes free than `needed_bytes`; empty where it has enough."""
    free_bytes = shutil.disk_usage(root).free
    if free_bytes >= needed_bytes:
        return ""
    return (
        f"checkpoint.save: {root} has {free_bytes:,} bytes free, {what} needs {needed_bytes:,}; make room, lower "
        "checkpoint.keep, or choose another directory; earlier checkpoints are untouched"
    )


def publish(
    root: Path,
    step: int,
    keep: int | None = None,
    keep_every_steps: int | None = None,
    discard: Callable[[Path], object] | None = None,
) -> Path:
    """Make the finished `.tmp` directory of `step` the latest checkpoint, then delete all but the newest `keep`.

    Every checkpoint whose step `keep_every_steps` divides stays, too. `discard` deletes a directory; None does it at
    once.
    """
    final = step_directory(root, step)
    replaced = _replaced_directory(final)
    temporary = temporary_directory(root, step)
    _fsync_files(temporary)
    if final.exists():
        final.rename(replaced)
    temporary.rename(final)
    fsync(root)
    _write_latest(root, final.name)
    if replaced.exists():
        shutil.rmtree(replaced)
    if keep is not None:
        _prune(root, keep, keep_every_steps, discard or shutil.rmtree)
    return final


def _prune(root: Path, keep: int, keep_every_steps: int | None, discard: Callable[[Path], object]) -> None:
    """Delete what `resume_candidates` would come to last. One that is not complete does not count as kept."""
    num_kept = 0
    for path in _in_order(root):
        if num_kept < keep:
            num_kept += not _incomplete(path)
        elif keep_every_steps is None or _step(path) % keep_every_steps:
            # A rename first: a kill inside rmtree must not leave a half-empty directory under a checkpoint's name.
            doomed = path.with_name(f".{path.name}.tmp")
            path.rename(doomed)
            discard(doomed)


def _write_latest(root: Path, name: str) -> None:
    temporary = root / f".{LATEST_FILE}.tmp"
    write_text(temporary, name + "\n")
    temporary.replace(root / LATEST_FILE)
    fsync(root)


def _replaced_directory(final: Path) -> Path:
    return final.with_name(f".{final.name}.replaced")


def _fsync_files(directory: Path) -> None:
    for path in directory.iterdir():
        fsync(path)
    fsync(directory)
