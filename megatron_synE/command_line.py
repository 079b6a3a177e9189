"""How every command line ends: with a status, and with one message where something is wrong."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable


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
