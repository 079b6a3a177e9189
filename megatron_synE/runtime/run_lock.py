"""One run at a time in a folder: held by the main process from before its first write until its end.

The lock is the file `.run.lock` in the folder. Two things keep it:

- `flock`, where the file system has it: the kernel gives it back when the owner dies, however it dies. Forked children
  (the writers of an asynchronous save) inherit it, so a folder is free only when nobody is left that writes to it.
- a record in the file: host, process, and a heartbeat, a number that a thread raises every few seconds. It says who
  the owner is; and it decides where flock cannot: an owner on another machine lives as long as its heartbeat moves.
  Clocks are never compared. Where there is no flock, process id and start time decide on the same machine.

| the owner in the record | the folder is free when |
| --- | --- |
| none, or of this machine | flock is granted; without flock: there is no such process |
| of another machine | its heartbeat did not move for `SILENT_SECONDS` |
"""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import fcntl
import json
import os
import secrets
import socket
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from megatron_synE.runtime import processes

LOCK_FILE = ".run.lock"
RECORD_BYTES = 1024
BEAT_SECONDS = 3.0
SILENT_SECONDS = 45.0
"""A heartbeat of another machine that stands still for so long is a dead owner's."""
PATIENCE_SECONDS = 5.0
"""How long a start waits for an owner that was killed a moment ago."""
ENDING_PATIENCE_SECONDS = 60.0
"""How long a start waits for an owner that was told to stop."""
SETTLE_SECONDS = 2.0
"""Without flock, the last of several records that were written at once stands after this time."""
POLL_SECONDS = 0.25

_NO_FLOCK = {errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL}


@dataclass(frozen=True)
class Owner:
    """The process that a lock belongs to."""

    token: str
    host: str
    machine: str
    pid_namespace: int
    pid: int
    start_ticks: int
    since: str
    job: str
    heartbeat: int = 0
    ending: bool = False

    @classmethod
    def this_process(cls) -> Owner:
        """The caller, from now on."""
        return cls(
            token=secrets.token_hex(8),
            host=socket.gethostname(),
            machine=processes.machine(),
            pid_namespace=processes.pid_namespace(),
            pid=os.getpid(),
            start_ticks=processes.start_ticks(os.getpid()) or 0,
            since=datetime.now().astimezone().isoformat(sep=" ", timespec="seconds"),
            job=_job_name(),
        )

    def __str__(self) -> str:
        job = f" ({self.job})" if self.job else ""
        ending = ", which is ending" if self.ending else ""
        return f"host {self.host} pid {self.pid} since {self.since}{job}{ending}"


class RunLock:
    """The folders of one run; taken and given back by its main process.

    Args:
        folders: by the field of the configuration that names them; equal ones are locked once.
        is_ending: whether this process was told to stop; a start that waits for it then has more patience.
        on_lost: called in a thread when another process has taken a folder, which happens only to an owner whose
            machine stood still for `SILENT_SECONDS`: it must end the process before that writes anything.
    """

    def __init__(
        self, folders: Mapping[str, str | Path], *, is_ending: Callable[[], bool], on_lost: Callable[[str], None]
    ) -> None:
        by_path = {Path(folder).resolve(): field for field, folder in reversed(list(folders.items()))}
        self._locks = [FolderLock(field, path) for path, field in sorted(by_path.items())]
        self._is_ending = is_ending
        self._on_lost = on_lost
        self._released = threading.Event()
        self._thread: threading.Thread | None = None

    def acquire(self) -> None:
        """Take all folders, or none.

        Raises:
            ValueError: another process has one, or it cannot be written to.
        """
        for number, lock in enumerate(self._locks):
            try:
                lock.acquire()
            except BaseException:
                for taken in self._locks[:number]:
                    taken.release()
                raise
        if self._locks:
            self._thread = threading.Thread(target=self._beat, name="run lock", daemon=True)
            self._thread.start()

    def release(self) -> None:
        """Give the folders back; nothing is left in them."""
        self._released.set()
        if self._thread is None:
            return
        self._thread.join()
        for lock in self._locks:
            lock.release()

    def _beat(self) -> None:
        while not self._released.wait(BEAT_SECONDS):
            for lock in self._locks:
                # A file system that fails for a while must not end the run by this: its next save will tell.
                with contextlib.suppress(OSError):
                    thief = lock.beat(self._is_ending())
                    if thief is not None and not self._released.is_set():
                        self._on_lost(f"{lock.field}: {lock.folder} was taken by {thief} while this run stood still")


def check_free(folders: Mapping[str, str | Path]) -> list[str]:
    """Which of these folders, by the field that names them, another run has; waits for it as a start would.

    Nothing is written: for a look before a start.
    """
    found = []
    for field, folder in folders.items():
        try:
            FolderLock(field, Path(folder).resolve()).check_free()
        except ValueError as error:
            found.append(str(error))
    return found


class FolderLock:
    """The lock of one folder."""

    def __init__(self, field: str, folder: Path) -> None:
        self.field = field
        self.folder = folder
        self._path = folder / LOCK_FILE
        self._descriptor: int | None = None
        self._own = Owner.this_process()

    def acquire(self) -> None:
        """Take the folder, making it where it is missing.

        Raises:
            ValueError: another process has it, or it cannot be written to.
        """
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            while not self._try():
                pass
        except OSError as error:
            self._close()
            raise ValueError(f"{self.field}: {self.folder} cannot be written to ({error}); choose another") from None

    def check_free(self) -> None:
        """Whether `acquire` would take the folder; leaves all as it is.

        Raises:
            ValueError: another process has it.
        """
        with contextlib.suppress(OSError):  # no file, no owner; whether the folder can be written to is not asked here
            self._descriptor = os.open(self._path, os.O_RDWR | os.O_CLOEXEC)
        if self._descriptor is not None:
            self._wait_until_free(makes_file=False)
            self._close()

    def release(self) -> None:
        """Remove the file, if it is still this process's, and let go of it."""
        with contextlib.suppress(OSError):
            owner = self._read()
            if owner is not None and owner.token == self._own.token:
                self._path.unlink()
        self._close()

    def beat(self, ending: bool) -> Owner | None:
        """Raise the heartbeat. Returns the owner instead where that is another one by now."""
        owner = self._read()
        if owner is not None and owner.token != self._own.token:
            return owner
        self._own = dataclasses.replace(self._own, heartbeat=self._own.heartbeat + 1, ending=ending)
        self._write()
        return None

    def _try(self) -> bool:
        """Wait until the folder is free and take it; False when another was faster."""
        self._open()
        granted = self._wait_until_free()
        if not self._is_current_file():
            return False  # its owner removed the file after we had opened it
        self._own = Owner.this_process()
        self._write()
        if granted:
            return True
        time.sleep(SETTLE_SECONDS)
        owner = self._read()
        return owner is not None and owner.token == self._own.token

    def _wait_until_free(self, *, makes_file: bool = True) -> bool:
        """Whether flock was granted; False where it does not decide.

        Raises:
            ValueError: the owner lives.
        """
        first = self._read()
        start = time.monotonic()
        while True:
            granted, owner = self._flock(), self._read()
            if self._is_free(owner, granted):
                return granted is True
            waited_seconds = time.monotonic() - start
            if owner is not None and not self._is_local(owner, granted) and _same_beat(owner, first):
                if waited_seconds > SILENT_SECONDS:
                    return granted is True
            elif waited_seconds > (ENDING_PATIENCE_SECONDS if owner and owner.ending else PATIENCE_SECONDS):
                self._close()
                raise ValueError(
                    f"{self.field}: {self.folder} is in use by {owner or 'another process'}; "
                    "stop that run or choose another folder"
                )
            if not self._is_current_file():
                if not makes_file:
                    return True
                self._open()
            time.sleep(POLL_SECONDS)

    def _is_local(self, owner: Owner, granted: bool | None) -> bool:
        """Whether this machine's kernel knows if the owner lives."""
        same_machine = owner.machine == self._own.machine
        return same_machine and (granted is not None or owner.pid_namespace == self._own.pid_namespace)

    def _is_free(self, owner: Owner | None, granted: bool | None) -> bool:
        if granted is False:
            return False
        if owner is None:
            return True
        if not self._is_local(owner, granted):
            return False
        return granted is True or processes.start_ticks(owner.pid) != owner.start_ticks

    def _flock(self) -> bool | None:
        """True: granted; False: another process has it; None: the file system has no flock."""
        assert self._descriptor is not None
        try:
            fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        except OSError as error:
            if error.errno in _NO_FLOCK:
                return None
            raise
        return True

    def _is_current_file(self) -> bool:
        assert self._descriptor is not None
        try:
            return os.path.samestat(os.fstat(self._descriptor), os.stat(self._path))
        except FileNotFoundError:
            return False

    def _open(self) -> None:
        self._close()
        self._descriptor = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)

    def _read(self) -> Owner | None:
        """The record; None where there is none. Opened anew: that is when network file systems look again."""
        try:
            content = json.loads(self._path.read_bytes())
            return Owner(**content)
        except (FileNotFoundError, ValueError, TypeError):
            return None

    def _write(self) -> None:
        """In place, in one piece of constant length: flock belongs to the file, which so stays the same."""
        assert self._descriptor is not None
        record = json.dumps(dataclasses.asdict(self._own), ensure_ascii=True).encode("ascii")
        os.pwrite(self._descriptor, record.ljust(RECORD_BYTES), 0)
        os.fsync(self._descriptor)

    def _close(self) -> None:
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None


def _same_beat(owner: Owner, first: Owner | None) -> bool:
    return first is not None and (owner.token, owner.heartbeat) == (first.token, first.heartbeat)


def _job_name() -> str:
    """What the scheduler or the launcher calls this run."""
    if "SLURM_JOB_ID" in os.environ:
        return f"Slurm job {os.environ['SLURM_JOB_ID']}"
    if "TORCHELASTIC_RUN_ID" in os.environ:
        return f"torchrun {os.environ['TORCHELASTIC_RUN_ID']}"
    return ""
