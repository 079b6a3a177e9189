"""A folder in which output grows until it is complete, and from which a killed job goes on.

    {folder}/lock          held by the process that works there
    {folder}/job.json      what is being made, of what: only the same job goes on
    {folder}/marks.jsonl   a line for each mark: the length of every file, checksums of what was new, where to go on
    {folder}/plan.json     once everything is there: what is renamed to what
    {folder}/...           the growing files

A mark is written after the files are safely on disk. Going on from it, each file is read and compared, and cut back to
the last mark up to which all of them are whole; so neither a kill, nor a full disk, nor a damaged file can leave more
behind than work to be done again. What has its final name was complete before it got it.
"""

import fcntl
import hashlib
import json
import logging
import os
import shutil
from collections.abc import Sequence
from contextlib import suppress
from itertools import zip_longest
from pathlib import Path
from types import TracebackType
from typing import IO, Any

import numpy as np
import xxhash
from typing_extensions import Buffer

from megatron_synE.corpus.indexed import write_json_atomically

logger = logging.getLogger(__name__)

READ_BYTES = 16 << 20
SYNC_BYTES = 32 << 20
"""A growing file is brought safely to disk whenever it has grown by so much."""


class StagedFile:
    """A file that only grows.

    Attributes:
        path: in the staging folder.
        num_bytes: its length.
        content_hash: SHA-256 of all of it, where that is wanted.
    """

    def __init__(self, path: Path, with_content_hash: bool) -> None:
        self.path, self.num_bytes, self._unsynced_bytes = path, 0, 0
        self.content_hash = hashlib.sha256() if with_content_hash else None
        self._new = xxhash.xxh3_64()
        self._file: IO[bytes] = open(path, "ab", buffering=0)  # noqa: SIM115 - closed by Staging

    def write(self, values: Buffer) -> None:
        """Append an array, or anything that is bytes, as it lies in memory."""
        data = np.ascontiguousarray(values).reshape(-1).view(np.uint8).data
        written = 0
        try:
            while written < len(data):
                written += self._file.write(data[written:]) or 0
        except OSError as error:
            raise OSError(error.errno, error.strerror, str(self.path)) from error
        self.num_bytes += len(data)
        self._new.update(data)
        if self.content_hash is not None:
            self.content_hash.update(data)
        self._unsynced_bytes += len(data)
        if self._unsynced_bytes >= SYNC_BYTES:  # while others compute, and not all at the end
            os.fsync(self._file.fileno())
            self._unsynced_bytes = 0

    def mark(self) -> list[Any]:
        """Bring it safely to disk and return [its length, a checksum of what is new since the mark before]."""
        os.fsync(self._file.fileno())
        self._unsynced_bytes = 0
        found = [self.num_bytes, self._new.hexdigest()]
        self._new.reset()
        return found

    def matches(self, mark: list[Any]) -> bool:
        """Read on up to a mark; whether what is there is what was marked. If not, what was read before still counts."""
        num_bytes, checksum = mark
        digest = self.content_hash.copy() if self.content_hash is not None else None
        found, left = xxhash.xxh3_64(), num_bytes - self.num_bytes
        with open(self.path, "rb") as file:
            file.seek(self.num_bytes)
            while left > 0 and (block := file.read(min(READ_BYTES, left))):
                found.update(block)
                if digest is not None:
                    digest.update(block)
                left -= len(block)
        if left or found.hexdigest() != checksum:
            return False
        self.num_bytes, self.content_hash = num_bytes, digest
        return True

    def cut(self) -> None:
        """Drop what lies behind ``num_bytes``."""
        os.truncate(self.path, self.num_bytes)

    def close(self) -> None:
        self._file.close()


class Staging:
    """The folder, held by this process; a context manager that leaves it only where there is a mark to go on from.

    Args:
        folder: beside the output.
        job: what is made, of what, JSON-able; None for work that cannot be gone on with.

    Raises:
        ValueError: another process works there, or what lies there is of another job.
    """

    state: dict[str, Any] | None
    """What ``mark`` was given last, also by the process before; None at the beginning."""

    def __init__(self, folder: Path, job: dict[str, Any] | None = None) -> None:
        self.folder = folder
        folder.parent.mkdir(parents=True, exist_ok=True)
        self._lock = _locked(folder)
        self.state, self._files = None, dict[str, StagedFile]()
        try:
            self._take_over(None if job is None else json.loads(json.dumps(job)))
        except BaseException:
            self._lock.close()
            raise

    def _take_over(self, job: dict[str, Any] | None) -> None:
        path = self.folder / "job.json"
        if path.exists():
            start_over = f"or start over: delete the folder {self.folder}"
            try:
                found = json.loads(path.read_bytes())
            except ValueError as error:
                raise ValueError(
                    f"{path}: damaged ({error}); the unfinished work cannot go on; {start_over}"
                ) from error
            if found != job:
                difference = _differences(found, job) if job is not None else "it makes something else"
                raise ValueError(
                    f"{self.folder} holds the unfinished work of another command ({difference}); "
                    f"repeat that command to finish it, {start_over}"
                )
            return
        for entry in self.folder.iterdir():
            if entry.name != "lock":
                shutil.rmtree(entry) if entry.is_dir() else entry.unlink()
        if job is not None:
            write_json_atomically(path, job)

    def open_files(self, names: dict[str, bool]) -> None:
        """Open the growing files (name → whether its SHA-256 is wanted) and go back to the last mark that holds."""
        self._files = {name: StagedFile(self.folder / name, hashed) for name, hashed in names.items()}
        marks = self.folder / "marks.jsonl"
        found, accepted = marks.read_bytes() if marks.exists() else b"", b""
        for line in found.splitlines(keepends=True):
            content = _checked_line(line)
            if content is None or content["files"].keys() != self._files.keys():
                break
            if not self._all_match(content["files"]):
                break
            self.state, accepted = content["state"], accepted + line
        for file in self._files.values():
            file.cut()
        if found != accepted:
            _replace_safely(marks, accepted)

    def _all_match(self, marked: dict[str, list[Any]]) -> bool:
        before = {name: (file.num_bytes, file.content_hash) for name, file in self._files.items()}
        if all(file.matches(marked[name]) for name, file in self._files.items()):
            return True
        for name, file in self._files.items():
            file.num_bytes, file.content_hash = before[name]
        return False

    def file(self, name: str) -> StagedFile:
        """One of the growing files."""
        return self._files[name]

    @property
    def num_bytes(self) -> int:
        """Of all growing files."""
        return sum(file.num_bytes for file in self._files.values())

    def mark(self, state: dict[str, Any]) -> None:
        """Make all that was written so far safe, with ``state`` as what to go on from."""
        content = {"files": {name: file.mark() for name, file in self._files.items()}, "state": state}
        with open(self.folder / "marks.jsonl", "ab") as out:
            out.write(_line_with_checksum(content))
            out.flush()
            os.fsync(out.fileno())
        self.state = state

    def publish(self, moves: Sequence[tuple[str, Path]], removed: Sequence[Path], result: dict[str, Any]) -> None:
        """Give complete files their final names.

        Args:
            moves: (name here, final path), in this order; each replaces what is there.
            removed: paths that go before.
            result: what ``interrupted_publication`` returns to a process that has to do this again.
        """
        for name, _ in moves:
            with open(self.folder / name, "rb") as file:
                os.fsync(file.fileno())
        plan = {
            "moves": [[name, path.name] for name, path in moves],
            "removed": [path.name for path in removed],
            "result": result,
        }
        _replace_safely(self.folder / "plan.json", _line_with_checksum(plan))
        sync_directory(self.folder)
        self._carry_out(plan)

    def interrupted_publication(self) -> dict[str, Any] | None:
        """Finish what a process was doing when it was killed in ``publish``, and return its result; None else."""
        try:
            plan = _checked_line((self.folder / "plan.json").read_bytes())
        except FileNotFoundError:
            return None
        if plan is None:  # damaged: the files that are left are compared with their marks
            return None
        self._carry_out(plan)
        result: dict[str, Any] = plan["result"]
        return result

    def _carry_out(self, plan: dict[str, Any]) -> None:
        parent = self.folder.parent
        if (self.folder / plan["moves"][0][0]).exists():  # nothing has its new name yet
            for name in plan["removed"]:
                (parent / name).unlink(missing_ok=True)
        for name, target in plan["moves"]:
            if (self.folder / name).exists():  # else it was moved before
                os.replace(self.folder / name, parent / target)
        sync_directory(parent)
        self.remove()

    def remove(self) -> None:
        """Leave nothing behind. The plan goes last: without it, the folder would look like a job at its beginning."""
        self._close_files()
        for entry in self.folder.iterdir():
            if entry.name not in ("plan.json", "lock"):
                shutil.rmtree(entry) if entry.is_dir() else entry.unlink()
        (self.folder / "plan.json").unlink(missing_ok=True)
        (self.folder / "lock").unlink()
        with suppress(OSError):  # where another process begins at this moment, the folder is its own
            self.folder.rmdir()
        self._lock.close()

    def release(self) -> None:
        """Leave what can be gone on with, else nothing."""
        if self._lock.closed:
            return
        marks = self.folder / "marks.jsonl"
        if not marks.exists() or not marks.stat().st_size:
            self.remove()
        self._close_files()
        self._lock.close()

    def _close_files(self) -> None:
        for file in self._files.values():
            file.close()

    def __enter__(self) -> "Staging":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if isinstance(value, OSError) and value.filename is None:  # a full disk, for example: say where
            value.filename = str(self.folder)
        self.release()


def sync_directory(directory: Path) -> None:
    """Make renames in a directory safe."""
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _replace_safely(path: Path, content: bytes) -> None:
    """The old content or the new one, never a part."""
    temporary = path.with_suffix(".tmp")
    with open(temporary, "wb") as out:
        out.write(content)
        out.flush()
        os.fsync(out.fileno())
    os.replace(temporary, path)


def _locked(folder: Path) -> IO[bytes]:
    """Make the folder, and hold its lock file, which must still be there once it is held: its holder may remove it."""
    while True:
        folder.mkdir(exist_ok=True)
        try:
            file = open(folder / "lock", "ab")  # noqa: SIM115 - held as long as the process works here
        except FileNotFoundError:
            continue
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            file.close()
            raise ValueError(f"{folder}: another process is writing this output ({file.name} is locked)") from error
        except OSError as error:  # Lustre that is mounted without flock
            logger.warning("%s: no locks here (%s); let no second process write this output", folder, error.strerror)
        try:
            if os.path.samestat(os.fstat(file.fileno()), os.stat(folder / "lock")):
                return file
        except FileNotFoundError:
            pass
        file.close()


def _differences(found: dict[str, Any], job: dict[str, Any]) -> str:
    """The first thing in which two jobs differ, in words."""
    for name in dict.fromkeys([*found, *job]):
        theirs, ours = found.get(name), job.get(name)
        if theirs == ours:
            continue
        if isinstance(theirs, dict) and isinstance(ours, dict):
            return _differences(theirs, ours)
        if isinstance(theirs, list) and isinstance(ours, list):
            pairs = enumerate(zip_longest(theirs, ours))
            number, (theirs, ours) = next((i, pair) for i, pair in pairs if pair[0] != pair[1])
            name = f"{name}, number {number + 1},"
        return f"{name} was {json.dumps(theirs, ensure_ascii=False)} and is now {json.dumps(ours, ensure_ascii=False)}"
    return "their order differs"


def _line_with_checksum(content: dict[str, Any]) -> bytes:
    text = json.dumps(content, ensure_ascii=True, separators=(",", ":")).encode()
    return xxhash.xxh3_64_hexdigest(text).encode() + b" " + text + b"\n"


def _checked_line(line: bytes) -> dict[str, Any] | None:
    checksum, _, text = line.rstrip(b"\n").partition(b" ")
    if not line.endswith(b"\n") or checksum != xxhash.xxh3_64_hexdigest(text).encode():
        return None
    content: dict[str, Any] = json.loads(text)
    return content
