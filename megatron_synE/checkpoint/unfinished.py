"""A directory that is filled file by file, goes on after a kill, and gets its final name when it is complete.

    {place}/files/      what will get the final name
    {place}/journal     one JSON object a line: first the identity of what is being written (its source and the options
                        that decide its bytes), then each finished file with its size, its checksum, and what its
                        writer wants to know of it later

A process that comes after a kill keeps the finished files of the same identity, and starts afresh on any other. Nothing
here needs torch.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from megatron_synE.checkpoint.checksummed_file import ChecksummedFile
from megatron_synE.checkpoint.files import file_checksum, fsync
from megatron_synE.progress import ProgressBar

JOURNAL_FILE = "journal"
FILES_DIRECTORY = "files"

_NO_SPACE = (errno.ENOSPC, errno.EDQUOT)


class UnfinishedDirectory:
    """The files so far. Made by `unfinished_directory`, which holds the lock."""

    def __init__(self, place: Path, identity: Mapping[str, Any]) -> None:
        self.on_written: Callable[[int], None] = lambda num_bytes: None
        self.directory = place / FILES_DIRECTORY
        self.directory.mkdir(exist_ok=True)
        self._journal = place / JOURNAL_FILE
        self._entries = {
            name: entry
            for name, entry in _read_journal(self._journal, identity).items()
            if (self.directory / name).is_file()
        }
        for path in self.directory.iterdir():
            if path.name not in self._entries:
                shutil.rmtree(path) if path.is_dir() else path.unlink()
        self._journal.unlink(missing_ok=True)  # written anew: its last line may be half a one
        self._append({"identity": identity}, *self._entries.values())

    @property
    def is_empty(self) -> bool:
        """Whether no file is finished."""
        return not self._entries

    def finished_bytes(self) -> int:
        """Size of all finished files."""
        return sum(entry["bytes"] for entry in self._entries.values())

    def checksums(self) -> dict[str, str]:
        """xxh3_128 of each finished file."""
        return {name: entry["checksum"] for name, entry in self._entries.items()}

    def write(self, name: str, fill: Callable[[ChecksummedFile], Any]) -> Any:
        """Have `fill` write file `name` and describe it, unless it is there already; returns the description (JSON)."""
        entry = self._entries.get(name)
        path = self.directory / name
        if entry is not None and path.stat().st_size == entry["bytes"] and file_checksum(path) == entry["checksum"]:
            return entry["facts"]
        with ChecksummedFile(path, self.on_written) as file:
            try:
                facts = fill(file)
                checksum = file.sync()
            except Exception as error:
                path.unlink()  # its space is needed
                raise file.error or error from None
        self._entries[name] = {"file": name, "bytes": file.size_bytes, "checksum": checksum, "facts": facts}
        self._append(self._entries[name])
        return facts

    def rename(self, target: Path) -> None:
        """Give the complete directory its final name, which is free or an empty directory's."""
        fsync(self.directory)
        self.directory.rename(target)
        fsync(target.parent)
        shutil.rmtree(self._journal.parent)

    def _append(self, *lines: Mapping[str, Any]) -> None:
        with open(self._journal, "a", encoding="utf-8") as file:
            file.writelines(json.dumps(line) + "\n" for line in lines)
            file.flush()
            os.fsync(file.fileno())


@contextmanager
def unfinished_directory(place: Path, identity: Mapping[str, Any], needed_bytes: int) -> Iterator[UnfinishedDirectory]:
    """The directory of an earlier process that was writing the same, or an empty one; no other process has it.

    Args:
        place: for the directory and its journal; on the file system of the final name.
        identity: JSON; files of another identity are removed.
        needed_bytes: size of all files together.

    Raises:
        ValueError: another process is writing here; the place cannot be written to; the disk is, or becomes, too full:
            then files that are finished stay for the next attempt.
    """
    started: UnfinishedDirectory | None = None
    try:
        place.mkdir(parents=True, exist_ok=True)
        with _locked(place):
            started = UnfinishedDirectory(place, identity)
            _check_space(started, needed_bytes)
            done_bytes = started.finished_bytes()
            with ProgressBar(f"writing {place.parent}", needed_bytes, "bytes", done=done_bytes) as bar:
                started.on_written = bar.advance
                yield started
    except OSError as error:
        finished_bytes = 0 if started is None else started.finished_bytes()
        if error.errno in _NO_SPACE:
            raise _too_full(place, needed_bytes, finished_bytes) from None
        raise ValueError(f"{place}: cannot be written ({error}); choose another place") from None
    finally:
        if started is not None and started.is_empty:
            shutil.rmtree(place, ignore_errors=True)


def _check_space(unfinished: UnfinishedDirectory, needed_bytes: int) -> None:
    finished_bytes = unfinished.finished_bytes()
    if _free_bytes(unfinished.directory) < needed_bytes - finished_bytes:
        raise _too_full(unfinished.directory, needed_bytes, finished_bytes)


def _too_full(directory: Path, needed_bytes: int, finished_bytes: int) -> ValueError:
    kept = f"; {finished_bytes:,} bytes are finished and kept there, the same command goes on from them"
    return ValueError(
        f"{directory}: the disk is too full: {needed_bytes - finished_bytes:,} bytes are needed, "
        f"{_free_bytes(directory):,} are free; make room or choose another place{kept if finished_bytes else ''}"
    )


def _free_bytes(directory: Path) -> int:
    existing = next(path for path in (directory, *directory.absolute().parents) if path.is_dir())
    return shutil.disk_usage(existing).free


@contextmanager
def _locked(place: Path) -> Iterator[None]:
    """The kernel frees the lock when its process ends, however it ends."""
    descriptor = os.open(place, os.O_RDONLY)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ValueError(f"{place}: another process is writing here; wait for it, or end it") from None
        yield
    finally:
        os.close(descriptor)


def _read_journal(journal: Path, identity: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Finished files by name, if the journal is of this identity. A last line that a kill cut off does not count."""
    try:
        first, *lines = journal.read_text(encoding="utf-8").splitlines()
        if json.loads(first) != {"identity": json.loads(json.dumps(identity))}:
            return {}
    except (FileNotFoundError, ValueError):
        return {}
    entries = {}
    for line in lines:
        try:
            entry = json.loads(line)
        except ValueError:
            break
        entries[entry["file"]] = entry
    return entries
