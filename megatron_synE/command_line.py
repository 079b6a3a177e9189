"""What command lines do alike: end with a status, with one message where something is wrong; and leave what they write
complete or absent.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO


def run_tool(name: str, command: Callable[[], int | None]) -> int:
    """Run a tool's body and return its exit status.

    ValueError and OSError are the user's to mend: one message, status 1. A reader that has gone (`| head`) ends the
    tool in silence, as it would end any other program. Everything else is a fault of ours and keeps its traceback.

    Args:
        name: of the tool, for the message.
        command: returns the status, None for 0.
    """
    try:
        status = command() or 0
        sys.stdout.flush()
        return status
    except BrokenPipeError:
        # Else Python would try to flush once more on its way out, and complain.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 128 + signal.SIGPIPE
    except (ValueError, OSError) as error:
        print(f"{name}: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print(f"{name}: interrupted", file=sys.stderr)
        return 128 + signal.SIGINT


@contextmanager
def output_file(path: str | Path, *, overwrite: bool = True) -> Iterator[BinaryIO]:
    """A file to write: aside, then brought to disk and renamed when the block ends well. Its folder is made.

    Raises:
        ValueError: it is there already, and ``overwrite`` is not set.
        OSError: it cannot be written; names it.
    """
    path = Path(path)
    if path.exists() and not path.is_file():  # a pipe or a device: there is no aside
        with open(path, "wb") as file:
            yield file
        return
    if path.exists() and not overwrite:
        raise ValueError(f"{path}: is there already; choose another name, or replace it with --overwrite")
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f"{path.name}.tmp-{os.getpid()}")
    try:
        with open(aside, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(aside, path)
    finally:
        aside.unlink(missing_ok=True)
