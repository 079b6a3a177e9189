"""What command lines do alike: tell their defaults, complete in the shell, end with a status, with one message where
something is wrong; and leave what they write complete or absent.
"""

from __future__ import annotations

import argparse
import errno
import fcntl
import glob
import io
import logging
import os
import signal
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO

SHELLS = ("bash", "zsh", "tcsh")
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


class ToolParser(argparse.ArgumentParser):
    """A tool's parser, or that of one of its commands.

    Its --help shows the description as it is written and every default; --print-completion prints a script for a shell.

    Args:
        description: the tool's docstring.
    """

    def __init__(self, description: str | None = None, **options: Any) -> None:
        options.setdefault("formatter_class", HelpWithDefaults)
        super().__init__(description=description, **options)
        if description is not None:  # commands have a help text, and no description
            self.add_argument(
                "--print-completion", choices=SHELLS, action=_PrintCompletion,
                help="print what completes this command in a shell, and exit",
            )  # fmt: skip


class HelpWithDefaults(argparse.RawDescriptionHelpFormatter):
    """Adds the default to each help text that does not tell it in its own words."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        tells = "default" in (action.help or "") or action.default in (None, False, [], argparse.SUPPRESS)
        if tells or action.required or not action.help:
            return action.help
        return f"{action.help} (default: {_as_written(action.default)})"


class _PrintCompletion(argparse.Action):
    def __init__(self, option_strings: Sequence[str], dest: str, **options: Any) -> None:
        super().__init__(option_strings, argparse.SUPPRESS, default=argparse.SUPPRESS, **options)

    def __call__(self, parser: Any, namespace: Any, values: Any, option_string: str | None = None) -> None:
        import shtab

        for action in _all_actions(parser):
            if action.nargs != 0 and action.choices is None and action.type in (None, str, Path):
                action.complete = shtab.FILE  # type: ignore[attr-defined]
        print(shtab.complete(parser, values))
        parser.exit(0)


def _all_actions(parser: argparse.ArgumentParser) -> Iterator[argparse.Action]:
    for action in parser._actions:
        yield action
        if isinstance(action, argparse._SubParsersAction):
            for command in action.choices.values():
                yield from _all_actions(command)


def _as_written(default: Any) -> str:
    """A default as it would be given."""
    return " ".join(map(str, default)) if isinstance(default, list | tuple) else str(default).replace("%", "%%")


def run_tool(name: str, command: Callable[[], int | None]) -> int:
    """Run a tool, its reading of the command line included, and return its exit status.

    ValueError and OSError are the user's to mend: one message, status 1. A reader that has gone (`| head`) ends the
    tool in silence, as it would end any other program. Everything else is a fault of ours and keeps its traceback.

    Args:
        name: of the tool, for the message.
        command: returns the status, None for 0.
    """
    try:
        try:
            return command() or 0
        finally:
            sys.stdout.flush()  # here, where a failure has a message; also after --help
    except BrokenPipeError:
        _drop_output()
        return 128 + signal.SIGPIPE
    except (ValueError, OSError) as error:
        _drop_output()
        print(f"{name}: {described(error)}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print(f"{name}: interrupted", file=sys.stderr)
        return 128 + signal.SIGINT


def _drop_output() -> None:
    """Where nothing can be printed any more: else Python would try once more on its way out, and complain."""
    try:
        sys.stdout.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def outlive_readers() -> None:
    """From now on, what this process prints goes nowhere once its reader has gone (`| head`), and the process goes on.

    So it does where a log's disk is full. For a program whose work is worth more than its output: a training run.
    """
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        raw = io.BufferedWriter(_LenientFile(stream.fileno(), "wb", closefd=False))
        lenient = io.TextIOWrapper(
            raw, encoding=stream.encoding, errors=stream.errors, line_buffering=stream.line_buffering
        )
        setattr(sys, name, lenient)


class _LenientFile(io.FileIO):
    def write(self, data: Any) -> int:
        try:
            return super().write(data) or 0
        except OSError as error:
            if error.errno in (errno.EPIPE, errno.EIO):  # a pipe, or a terminal
                os.dup2(os.open(os.devnull, os.O_WRONLY), self.fileno())
            return len(data)


def described(error: Exception) -> str:
    """What is wrong, in one message; errors of the operating system by their file."""
    if not isinstance(error, OSError) or error.strerror is None or not isinstance(error.filename, str | bytes | Path):
        return str(error) or type(error).__name__
    path = Path(os.fsdecode(error.filename))
    nearest = next((parent for parent in (path, *path.parents) if parent.exists()), Path())
    if isinstance(error, FileExistsError | NotADirectoryError) and not nearest.is_dir():
        return f"{path}: {nearest} is a file, not a folder; name another"
    if isinstance(error, FileNotFoundError) and path.parent != nearest:
        return f"{path}: the folder {path.parent} is not there; make it, or name another"
    return f"{path}: {error.strerror[:1].lower()}{error.strerror[1:]}"


QUIET_LOGGERS = (
    "megatron.core.transformer.transformer_layer",  # does not know that our MLP takes no further arguments
    "megatron.core.dist_checkpointing.serialization",  # calls the folder that a save is prepared in an old one
)


def quiet_megatron() -> None:
    """megatron-core warns of every optional package that is absent; tools/doctor.py tells what is used instead.

    torch's C++ prints a stack for each connection that ends when a process dies; the trainer tells that itself. Call
    this before either is imported.
    """
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
    warnings.filterwarnings("ignore", module=r"megatron\.core")
    warnings.filterwarnings("ignore", message=r".*torch\.distributed.*deprecated", category=FutureWarning)
    for name in QUIET_LOGGERS:
        logging.getLogger(name).setLevel(logging.ERROR)


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
    for left in path.parent.glob(f"{glob.escape(path.name)}.tmp-*"):
        _remove_unless_locked(left)
    aside = path.with_name(f"{path.name}.tmp-{os.getpid()}")
    try:
        with open(aside, "wb") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(aside, path)
    except OSError as error:
        if error.errno in FULL and error.filename is None:
            raise OSError(error.errno, error.strerror, str(path)) from error
        raise
    finally:
        aside.unlink(missing_ok=True)


def _remove_unless_locked(left: Path) -> None:
    """Remove what a killed process was writing; one that still writes holds a lock on it."""
    with suppress(BlockingIOError, FileNotFoundError), open(left, "rb") as file:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        left.unlink()
