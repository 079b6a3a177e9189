"""Tokenising that kills itself: the n-th of the events that change a file is its last.

Every start is a fork of this process, which has imported all that it needs and has no thread but jemalloc's own.

One JSON object a line. Asked: {"argv", "kill_at", "largest_file_bytes"} → {"status", "num_events", "output"}. A status
is minus the signal that ended the process; no file can grow beyond that size, as on a disk that is full.
"""

from __future__ import annotations

import json
import os
import resource
import signal
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from megatron_synE.corpus import preprocess, readers, staging
from tools import preprocess_data

CHUNK_BYTES = 15_000
MARK_BYTES = 20_000


class Events:
    """Counts what changes a file, in a pipe that outlives the process, and kills it with SIGKILL when it is told so."""

    def __init__(self, kill_at: int | None, report: int) -> None:
        self._kill_at, self._report, self._num_events = kill_at, report, 0

    def around(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """The function, with an event before it."""

        def counted(*arguments: Any, **options: Any) -> Any:
            self._num_events += 1
            os.write(self._report, b".")
            if self._num_events == self._kill_at:
                os.kill(os.getpid(), signal.SIGKILL)
            return function(*arguments, **options)

        return counted

    def watch(self) -> None:
        """Watch all that tokenising does to files; a write may also end half-way."""
        for owner, names in (
            (os, ("replace", "fsync", "truncate")),
            (staging.StagedFile, ("write", "mark", "cut")),
            (Path, ("unlink", "mkdir", "rmdir")),
        ):
            for name in names:
                setattr(owner, name, self.around(getattr(owner, name)))
        whole = staging.StagedFile.write

        def in_two_parts(file: staging.StagedFile, values: Any) -> None:
            data = bytes(memoryview(values).cast("B"))
            whole(file, data[: len(data) // 2])
            whole(file, data[len(data) // 2 :])

        staging.StagedFile.write = in_two_parts  # type: ignore[method-assign]


def answer(argv: list[str], kill_at: int | None, largest_file_bytes: int | None) -> dict[str, Any]:
    """Run the command line in a fork."""
    reading, writing = os.pipe()
    with tempfile.TemporaryFile() as output:
        pid = os.fork()
        if pid == 0:
            os.dup2(output.fileno(), 1)
            os.dup2(output.fileno(), 2)
            readers.iter_chunks.__defaults__ = (CHUNK_BYTES,)  # type: ignore[misc]
            preprocess.MARK_BYTES = MARK_BYTES
            Events(kill_at, writing).watch()
            if largest_file_bytes is not None:
                resource.setrlimit(resource.RLIMIT_FSIZE, (largest_file_bytes, largest_file_bytes))
            status = 1
            try:
                status = preprocess_data.main(argv)
            finally:
                sys.stdout.flush()
                sys.stderr.flush()
                os._exit(status)
        os.close(writing)
        num_events = 0
        while data := os.read(reading, 65536):
            num_events += len(data)
        os.close(reading)
        _, status = os.waitpid(pid, 0)
        output.seek(0)
        text = output.read().decode()
    return {"status": os.waitstatus_to_exitcode(status), "num_events": num_events, "output": text}


if __name__ == "__main__":
    tasks = [path.read_text().strip() for path in Path("/proc/self/task").glob("*/comm")]
    assert len([name for name in tasks if name != "jemalloc_bg_thd"]) == 1, f"threads before a fork: {tasks}"
    for line in sys.stdin:
        print(json.dumps(answer(**json.loads(line))), flush=True)
