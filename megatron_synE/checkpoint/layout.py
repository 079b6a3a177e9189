"""How checkpoints lie on disk, and how one becomes visible: complete, or not at all.

    {root}/latest                   one line: the name of the newest complete checkpoint
    {root}/step_00000010/           a complete checkpoint
        state.json                  step, layout, model, and whatever the trainer gave: readable without torch
        files.json                  name and size in bytes of every other file
        index.json                  where each tensor's chunks lie
        *.distcp, .metadata, …      megatron-core's torch_dist format
    {root}/.step_00000020.tmp/      a save in progress, or what a killed one left; the next save removes it
    {root}/.step_00000010.replaced/ exists only between the two renames that replace a checkpoint of the same step

Order of a save: all files are written and fsynced under `.tmp`; the directory is renamed; `latest` is replaced; only
then old checkpoints are deleted. At every moment `latest` names a complete checkpoint, whatever is killed.
Nothing here needs torch.
"""

from __future__ import annotations

import json
import os
import re
import shutil
from pathlib import Path
from typing import Any

from megatron_synE.config.model import LlamaArchitecture, RopeScaling

FORMAT_VERSION = 1
STATE_FILE = "state.json"
FILES_FILE = "files.json"
INDEX_FILE = "index.json"
LATEST_FILE = "latest"

_STEP_DIRECTORY = re.compile(r"^step_(\d{8,})$")


class DamagedCheckpoint(ValueError):
    """The content of a checkpoint is not what was written."""


def resume_candidates(root: str | Path) -> list[Path]:
    """Complete checkpoints that a run may go on from, best first."""
    root = Path(root)
    latest = find_latest(root)
    return [] if latest is None else [latest, *(p for p in reversed(complete_checkpoints(root)) if p != latest)]


def step_directory(root: Path, step: int) -> Path:
    """Final place of the checkpoint of `step`."""
    return root / f"step_{step:08d}"


def temporary_directory(root: Path, step: int) -> Path:
    """Where the checkpoint of `step` is written."""
    return root / f".step_{step:08d}.tmp"


def find_latest(root: str | Path) -> Path | None:
    """The checkpoint that `{root}/latest` names; None where nothing was saved yet.

    Raises:
        ValueError: `latest` names something that is not there.
    """
    root = Path(root)
    pointer = root / LATEST_FILE
    if not pointer.is_file():
        return None
    name = pointer.read_text(encoding="utf-8").strip()
    if not _STEP_DIRECTORY.match(name):
        raise ValueError(f"{pointer}: holds {name!r}, not the name of a checkpoint; write step_XXXXXXXX into it")
    for candidate in (root / name, _replaced_directory(root / name)):
        if candidate.is_dir():
            return candidate
    present = ", ".join(path.name for path in complete_checkpoints(root)) or "none"
    raise ValueError(f"{pointer}: names {name}, which is not there (but {present}); write an existing name into it")


def complete_checkpoints(root: Path) -> list[Path]:
    """Directories of complete checkpoints, by ascending step."""
    found = [(int(match[1]), path) for path in root.iterdir() if (match := _STEP_DIRECTORY.match(path.name))]
    return [path for _, path in sorted(found)]


def resolve(path: str | Path) -> Path:
    """A checkpoint's directory, given it or the root that holds it.

    Raises:
        ValueError: there is no checkpoint.
    """
    path = Path(path)
    if (path / STATE_FILE).is_file():
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
        ValueError: no checkpoint, not JSON, or a format this version does not know.
    """
    path = resolve(path)
    state = read_json(path / STATE_FILE)
    version = state.get("format_version")
    if version != FORMAT_VERSION:
        raise ValueError(
            f"{path / STATE_FILE}: format_version is {version!r}, this megatron_synE reads {FORMAT_VERSION}; "
            "use the version that wrote the checkpoint"
        )
    return state


def read_architecture(path: str | Path) -> LlamaArchitecture:
    """The sizes of the model that the checkpoint at `path` holds. Needs no torch.

    Raises:
        ValueError: as `read_state`.
    """
    fields = dict(read_state(path)["architecture"])
    scaling = fields.pop("rope_scaling")
    return LlamaArchitecture(**fields, rope_scaling=None if scaling is None else RopeScaling(**scaling))


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object.

    Raises:
        ValueError: the file is missing or broken.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ValueError(f"{path}: missing; the checkpoint is not complete, use another one") from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: broken ({error}); use another checkpoint") from None
    if not isinstance(content, dict):
        raise ValueError(f"{path}: not a JSON object; use another checkpoint")
    return content


def to_json(name: str, content: dict[str, Any]) -> str:
    """The text of file `name`.

    Raises:
        ValueError: `content` holds something JSON has not.
    """
    try:
        return json.dumps(content, indent=1, ensure_ascii=False, allow_nan=False) + "\n"
    except (TypeError, ValueError) as error:
        raise ValueError(f"{name}: not JSON ({error}); give numbers, strings, lists and dicts only") from None


def write_text(path: Path, text: str) -> None:
    """Write and fsync."""
    with open(path, "w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())


def write_file_list(directory: Path) -> None:
    """Record name and size of all files in `directory`, so that a lost or shortened one is found before loading."""
    sizes = {path.name: path.stat().st_size for path in sorted(directory.iterdir()) if path.name != FILES_FILE}
    write_text(directory / FILES_FILE, to_json(FILES_FILE, {"files": sizes}))


def check_files(directory: Path) -> None:
    """Compare the directory with its own list.

    Raises:
        ValueError: names the files that are missing or of another size.
    """
    found = []
    for name, size_bytes in read_json(directory / FILES_FILE).get("files", {}).items():
        path = directory / name
        if not path.is_file():
            found.append(f"{path}: missing")
        elif path.stat().st_size != size_bytes:
            found.append(f"{path}: {path.stat().st_size} bytes, written were {size_bytes}")
    if found:
        raise ValueError("; ".join(found) + "; the checkpoint is damaged, copy it again or use another one")


def prepare(root: Path, step: int) -> Path:
    """An empty directory to write the checkpoint of `step` into; removes what killed saves left behind.

    Raises:
        ValueError: the place cannot be written to.
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
        directory = temporary_directory(root, step)
        directory.mkdir()
    except OSError as error:
        raise ValueError(f"checkpoint.save: {root} cannot be written to ({error}); choose another one") from None
    return directory


def publish(root: Path, step: int, keep: int | None) -> Path:
    """Make the finished `.tmp` directory of `step` the latest checkpoint, then delete all but the newest `keep`."""
    final = step_directory(root, step)
    replaced = _replaced_directory(final)
    temporary = temporary_directory(root, step)
    _fsync_files(temporary)
    if final.exists():
        final.rename(replaced)
    temporary.rename(final)
    _fsync_directory(root)
    _write_latest(root, final.name)
    if replaced.exists():
        shutil.rmtree(replaced)
    if keep is not None:
        _prune(root, keep)
    return final


def _prune(root: Path, keep: int) -> None:
    latest = find_latest(root)
    old = [path for path in complete_checkpoints(root) if path != latest]
    for path in old[: max(0, len(old) - (keep - 1))]:
        # A rename first: a kill inside rmtree must not leave a half-empty directory under a checkpoint's name.
        doomed = path.with_name(f".{path.name}.tmp")
        path.rename(doomed)
        shutil.rmtree(doomed)


def _write_latest(root: Path, name: str) -> None:
    temporary = root / f".{LATEST_FILE}.tmp"
    write_text(temporary, name + "\n")
    temporary.replace(root / LATEST_FILE)
    _fsync_directory(root)


def _replaced_directory(final: Path) -> Path:
    return final.with_name(f".{final.name}.replaced")


def _fsync_files(directory: Path) -> None:
    for path in directory.iterdir():
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
    _fsync_directory(directory)


def _fsync_directory(directory: Path) -> None:
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
