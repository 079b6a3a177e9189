"""Whether a program passes its own examples: the only place where something that a model wrote is executed.

Off unless it is asked for. The program runs in a process of its own, for a limited time in limited memory; it has no
network, writes no file and starts no process; see `bounded_program`.
"""

from __future__ import annotations

import os
import secrets
import signal
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

from megatron_synE.sandbox import bounded_program

SANDBOX = Path(bounded_program.__file__)
START_SECONDS = 20
"""For the process to come to life on a busy machine, beside the program's own time."""


@dataclass(frozen=True)
class CodeLimits:
    """What a program may take."""

    seconds: int = 5
    """Of computing."""
    memory_bytes: int = 1 << 30
    """Address space, Python included."""


def passes_examples(program: str, examples: str, limits: CodeLimits = CodeLimits()) -> bool:
    """Whether the program, and after it the examples, run to their end without an exception, within the limits.

    Raises:
        ValueError: this machine cannot keep a program in bounds; nothing was run.
    """
    token = secrets.token_hex(16)
    with tempfile.TemporaryDirectory(prefix="run-code-") as folder:
        path = Path(folder) / "program.py"
        path.write_text(f"{program}\n\n{examples}\n", encoding="utf-8", errors="replace")
        command = [sys.executable, "-I", "-S", "-B", str(SANDBOX), str(path), token]
        process = subprocess.Popen(
            [*command, str(limits.seconds), str(limits.memory_bytes)],
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, cwd=folder, env={},
            start_new_session=True,
        )  # fmt: skip
        assert process.stdout is not None
        with process.stdout:
            try:
                process.wait(timeout=limits.seconds + START_SECONDS)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
            # The pipe holds what was written; a program that floods it is stopped by it, never by our memory.
            written = process.stdout.read(len(token) + 1) if process.returncode == 0 else b""
    if process.returncode == bounded_program.NO_SANDBOX:
        raise ValueError("--run-code: needs Linux on x86-64 or arm64 with seccomp; nothing was run")
    return written == token.encode()
