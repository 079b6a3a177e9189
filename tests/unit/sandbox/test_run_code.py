"""Programs run in bounds: what passes, what fails, and what they cannot do."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import pytest

from megatron_synE.sandbox.run_code import CodeLimits, passes_examples

LIMITS = CodeLimits(seconds=1, memory_bytes=256 << 20)
GOOD = "import collections, math, heapq, re, functools, itertools, bisect, random, string, datetime, json\n"


@pytest.fixture(autouse=True, scope="module")
def kernel() -> None:
    try:
        passes_examples("", "")
    except ValueError as error:
        pytest.skip(str(error))


@pytest.mark.parametrize(
    "program, examples, passes",
    [
        ("def f(x):\n    return x + 1\n", "assert f(1) == 2\n", True),
        (GOOD + "def f(x):\n    return math.isqrt(x)\n", "print(f(4))\nassert f(4) == 2\n", True),
        ("def f(x):\n    return x\n", "assert f(1) == 2\n", False),
        ("def f(:\n", "", False),
        ("import sys\nsys.exit(0)\n", "assert False\n", False),
        ("import os\nos._exit(0)\n", "assert False\n", False),
        ("while True:\n    pass\n", "", False),
        ("x = bytearray(1 << 30)\n", "", False),
        ("def f(n):\n    return f(n + 1)\n", "f(0)\n", False),
    ],
)
def test_programs_pass_by_their_examples_only(program: str, examples: str, passes: bool) -> None:
    assert passes_examples(program, examples, LIMITS) == passes


@pytest.mark.parametrize(
    "attempt",
    [
        "open(PATH, 'w')",
        "open(PATH, 'a')",
        "os.remove(PATH)",
        "os.rename(PATH, PATH + '2')",
        "os.chmod(PATH, 0o777)",
        "os.mkdir(PATH + '-folder')",
        "os.truncate(PATH, 0)",
        "os.fork()",
        "os.execv('/bin/true', ['true'])",
        "os.kill(PID, 0)",
        "os.system('true') == 0 or os.getpid_of_shell",
        "__import__('threading').Thread(target=print).start()",
        "ctypes.CDLL(None).socket(2, 1, 0) >= 0 or [][0]",
        "ctypes.CDLL(None, use_errno=True).ptrace(16, PID, 0, 0) == 0 or [][0]",
        "ctypes.CDLL(None).syscall(425, 8, ctypes.create_string_buffer(256)) >= 0 or [][0]",
    ],
)
def test_a_program_changes_nothing_and_reaches_nobody(attempt: str, tmp_path: Path) -> None:
    path = tmp_path / "precious"
    path.write_text("precious")
    head = f"import os, ctypes\nPATH, PID = {str(path)!r}, {os.getpid()}\n"
    assert passes_examples(head + "open(PATH).read()\n", "", LIMITS)  # what is refused is the attempt, not the head
    assert not passes_examples(head + attempt + "\n", "", LIMITS)
    assert path.read_text() == "precious" and list(tmp_path.iterdir()) == [path]


def test_a_program_has_no_network() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        connect = f"import _socket\n_socket.socket(2, 1).connect(('127.0.0.1', {port}))\n"
        assert not passes_examples(connect, "", LIMITS)
        server.setblocking(False)
        with pytest.raises(BlockingIOError):
            server.accept()


def test_a_program_sees_no_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "secret")
    assert passes_examples("import os\n", "assert 'OPENAI_API_KEY' not in os.environ\n", LIMITS)
