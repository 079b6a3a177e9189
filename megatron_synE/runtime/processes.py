"""What Linux tells of a process of this machine."""

from __future__ import annotations

import os
from pathlib import Path

STATES = {"R": "running", "S": "sleeping", "D": "waiting for a disk", "T": "stopped", "t": "held by a debugger",
          "Z": "dead", "X": "dead"}  # fmt: skip
_EXITING = 4
"""PF_EXITING of the kernel's flags for a process: its connections close before its state says that it is dead."""


def machine() -> str:
    """This machine since its last boot; the same in all of its containers."""
    return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()


def pid_namespace() -> int:
    """Within which process ids mean something."""
    return os.stat("/proc/self/ns/pid").st_ino


def start_ticks(pid: int) -> int | None:
    """When the process started, in clock ticks since boot; None where there is no such process, or only its remains.

    With the process id it names one process: the number alone is given again.
    """
    fields = _stat(pid)
    return None if fields is None or fields[0] in "ZX" else int(fields[19])


def state(pid: int, started_ticks: int) -> str:
    """In words what the process does, "dead" where it is gone or about to be."""
    fields = _stat(pid)
    if fields is None or int(fields[19]) != started_ticks or int(fields[6]) & _EXITING:
        return "dead"
    return STATES.get(fields[0], fields[0])


def _stat(pid: int) -> list[str] | None:
    """The fields of /proc/PID/stat that follow the name, which may hold spaces."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    except (FileNotFoundError, ProcessLookupError):
        return None
    return text.rpartition(")")[2].split()
