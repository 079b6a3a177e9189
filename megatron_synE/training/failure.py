"""One message for one failure, however many processes find it; torchrun's report names it as the root cause."""

from __future__ import annotations

import json
import os
import sys
import threading
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

if TYPE_CHECKING:
    from megatron_synE.runtime.peers import Peers

SECONDS_FOR_THE_FIRST_PROCESS = 5.0


class RunEnded(Exception):
    """The run ended itself, saved, as its configuration asks; a person has to say how it goes on."""


MISTAKES = (ValueError, FloatingPointError, OSError, RunEnded)
"""Errors whose message says all that a user needs; others are told with their traceback."""

_CONNECTION_LOST = ("Connection closed by peer", "Connection reset by peer", "Broken pipe", "remote process exited")


def leave(status: int) -> NoReturn:
    """End this process, once its threads that still write have ended.

    Without the interpreter's last rites: there, a thread that speaks with other processes (on the board, or in a
    collective that another process's death has broken) aborts this one, or waits for ever.
    """
    if status == 0:
        for thread in threading.enumerate():
            if not thread.daemon and thread is not threading.current_thread():
                thread.join()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


def report(error: Exception, peers: Peers | None, wait: Callable[[float], bool]) -> None:
    """Tell of the error, unless another process of the run was faster: then this one only suffers from its failure.

    Args:
        peers: None before the processes know of each other. They all look at the same files then, so that what one
            finds all find: the first process tells, the others only when it did not end the run by that. Once they
            do, whoever fails first tells, and the others leave after it. Where the run ended itself all know, and the
            first process, which has records to close, has its time to tell.
        wait: sleeps for so many seconds, or until torchrun ends this process; whether that happened.
    """
    all_know = peers is None or isinstance(error, RunEnded)
    if all_know and os.environ.get("RANK", "0") != "0" and wait(SECONDS_FOR_THE_FIRST_PROCESS):
        return
    if peers is not None and not peers.is_first("failure"):
        wait(SECONDS_FOR_THE_FIRST_PROCESS)  # for torchrun, the process that ends first is the root cause
        return
    tell(describe(error, peers), kind=type(error).__name__)


def tell(text: str, kind: str) -> None:
    """To stderr, and to the file in which torchrun looks for the reason of a failure."""
    # The file first: torchrun reads it as soon as this process has ended.
    file = os.environ.get("TORCHELASTIC_ERROR_FILE")
    if file:
        extra = {"py_callstack": text, "timestamp": str(int(time.time()))}
        Path(file).write_text(json.dumps({"message": {"message": f"{kind}: {text}", "extraInfo": extra}}))
    rank = os.environ.get("RANK", "0")
    where = f" (process {rank})" if rank != "0" else ""
    print(f"pretrain_llama3_synE{where}: {text}", file=sys.stderr, flush=True)


def describe(error: Exception, peers: Peers | None) -> str:
    """What a person needs to know of it."""
    if isinstance(error, MISTAKES):
        return str(error)
    if isinstance(error, RuntimeError) and any(sign in str(error) for sign in _CONNECTION_LOST):
        dead = peers.dead() if peers is not None else []
        who = f"process {', '.join(map(str, dead))} of this run has" if dead else "a process on another machine has"
        return f"{who} died; the run cannot go on without ({_first_sentence(str(error))})"
    return "".join(traceback.format_exception(error)).rstrip()


def _first_sentence(text: str) -> str:
    return text.partition("\n")[0].partition(". ")[0]
