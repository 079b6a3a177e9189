"""Which process has a shard: one at a time, without the processes talking to each other.

A claim is a file that only one process can make: it is written aside, then linked to its name, which fails where that
is taken. It is locked (flock), which the kernel gives back when the process dies, however it dies; and it holds who the
owner is, with a number that the owner raises every few seconds, for a file system whose locks do not reach from machine
to machine. A claim is dead when

- its owner was on this machine, and its lock is granted;
- else, where its lock is not refused, when its number stood still for SILENT_SECONDS.

Clocks are never compared. A dead claim is taken over by whoever makes the file `….{token}.taken` beside it.
"""

from __future__ import annotations

import errno
import fcntl
import os
import secrets
import socket
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import orjson

SILENT_SECONDS = 45.0
NO_FLOCK = {errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL}


@dataclass(frozen=True)
class Owner:
    """What a claim says."""

    token: str
    host: str
    machine: str
    pid: int
    beat: int = 0
    paid: dict[str, Any] = field(default_factory=dict)
    """Tallies of the shard's journal, as of the last beat."""

    def __str__(self) -> str:
        return f"host {self.host} pid {self.pid}"


class Claim:
    """A shard that this process has."""

    def __init__(self, path: Path, descriptor: int, owner: Owner) -> None:
        self.path, self._descriptor, self._owner = path, descriptor, owner

    def beat(self, paid: dict[str, Any]) -> bool:
        """Say that the owner lives, and what it has paid; False where another process has taken the claim."""
        if not self.is_ours():
            return False
        self._owner = Owner(self._owner.token, self._owner.host, self._owner.machine, self._owner.pid,
                            self._owner.beat + 1, paid)  # fmt: skip
        _write(self._descriptor, self._owner)
        return True

    def is_ours(self) -> bool:
        """Whether the claim is still this process's."""
        found = read_owner(self.path)
        return found is not None and found.token == self._owner.token

    def release(self) -> None:
        """Give it back."""
        if self._descriptor < 0:
            return
        if self.is_ours():
            self.path.unlink(missing_ok=True)
        os.close(self._descriptor)
        self._descriptor = -1


class Claims:
    """The claims of a job, as this process sees them.

    Args:
        folder: of the claims; it is made.

    Raises:
        OSError: it cannot be written to.
    """

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._folder, self._machine = folder, this_machine()
        self._seen: dict[Path, tuple[str, int, float]] = {}
        """Claim → token and beat of its owner, and since when they stand so."""
        self.undecided: set[Path] = set()
        """Claims that were not taken, and may yet turn out to be dead."""
        for path in folder.glob("*.new"):
            _remove_dead(path)
        for path in folder.glob("*.taken"):
            name, token, _ = path.name.rsplit(".", 2)
            former = read_owner(folder / name)
            if former is None or former.token != token:
                path.unlink(missing_ok=True)  # of a taker that was killed when it had the claim

    def take(self, path: Path) -> Claim | None:
        """The claim, or None where a process has it that lives, or that may live: see ``undecided``."""
        owner = Owner(secrets.token_hex(8), socket.gethostname(), self._machine, os.getpid())
        try:
            descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC)
        except FileNotFoundError:
            self.undecided.discard(path)
            return self._make(path, owner)
        claim = self._take_over(path, descriptor, owner)
        if claim is None:
            os.close(descriptor)
        return claim

    def _make(self, path: Path, owner: Owner) -> Claim | None:
        aside = self._folder / f"{path.name}.{owner.token}.new"
        descriptor = os.open(aside, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644)
        try:
            _lock(descriptor)
            _write(descriptor, owner)
            os.link(aside, path)
        except FileExistsError:
            os.close(descriptor)
            return None  # another process was faster
        except BaseException:
            os.close(descriptor)
            raise
        finally:
            aside.unlink(missing_ok=True)
        return Claim(path, descriptor, owner)

    def _take_over(self, path: Path, descriptor: int, owner: Owner) -> Claim | None:
        granted, former = _lock(descriptor), read_owner(path)
        if granted is False or not _is_current(path, descriptor):
            self.undecided.discard(path)
            return None
        is_local = granted is True and former is not None and former.machine == self._machine
        if not is_local and not self._is_silent(path, former):
            return None
        marker = path.with_name(f"{path.name}.{former.token if former else 'none'}.taken")
        try:
            os.close(os.open(marker, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644))
        except FileExistsError:
            if not is_local:
                if time.monotonic() - self._seen[path][2] > 2 * SILENT_SECONDS:
                    marker.unlink(missing_ok=True)  # its maker died before it had the claim
                return None
        _write(descriptor, owner)
        marker.unlink(missing_ok=True)
        self.undecided.discard(path)
        return Claim(path, descriptor, owner)

    def _is_silent(self, path: Path, owner: Owner | None) -> bool:
        now, token, beat = time.monotonic(), owner.token if owner else "", owner.beat if owner else 0
        seen = self._seen.get(path)
        if seen is not None and seen[:2] != (token, beat):
            self.undecided.discard(path)  # it lives
        elif seen is not None:
            return now - seen[2] > SILENT_SECONDS
        else:
            self.undecided.add(path)
        self._seen[path] = (token, beat, now)
        return False


def this_machine() -> str:
    """This machine since its last boot; the same in all of its containers."""
    return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()


def read_owner(path: Path) -> Owner | None:
    """Who has a claim; None where nobody says so."""
    try:
        return Owner(**orjson.loads(path.read_bytes()))
    except (FileNotFoundError, orjson.JSONDecodeError, TypeError):
        return None


def _remove_dead(path: Path) -> None:
    """Remove a file that only its maker, which holds its lock, has a use for."""
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    except FileNotFoundError:
        return
    try:
        if _lock(descriptor):
            path.unlink(missing_ok=True)
    finally:
        os.close(descriptor)


def _lock(descriptor: int) -> bool | None:
    """True: granted; False: another process has it; None: the file system has no flock."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        if error.errno in NO_FLOCK:
            return None
        raise
    return True


def _is_current(path: Path, descriptor: int) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), os.stat(path))
    except FileNotFoundError:
        return False


def _write(descriptor: int, owner: Owner) -> None:
    """In one piece, padded, so that a shorter record leaves nothing of a longer one."""
    record = orjson.dumps({name: getattr(owner, name) for name in Owner.__dataclass_fields__})
    length = max(os.fstat(descriptor).st_size, len(record))
    os.pwrite(descriptor, record.ljust(length), 0)
