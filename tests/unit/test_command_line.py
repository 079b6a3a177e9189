"""What command lines do alike, whatever is wrong with the output or the command."""

from __future__ import annotations

import fcntl
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from megatron_synE.command_line import SHELLS, ToolParser, described, output_file, run_tool
from tests.helpers.commands import environment

TOOL = """
import sys
from megatron_synE.command_line import {wanted}
{body}
"""


def run_script(body: str, wanted: str = "run_tool", **options: object) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, "-c", TOOL.format(wanted=wanted, body=body)], stderr=subprocess.PIPE, env=environment(),
        **options,
    )  # fmt: skip


def fails(error: Exception) -> Callable[[], None]:
    def command() -> None:
        raise error

    return command


def test_statuses_and_messages(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert run_tool("tool", lambda: None) == 0 and run_tool("tool", lambda: 3) == 3
    assert run_tool("tool", fails(ValueError("--x: wrong"))) == 1
    assert run_tool("tool", lambda: (tmp_path / "no" / "file").write_text("")) == 1
    assert run_tool("tool", lambda: len(tmp_path.read_text())) == 1
    assert run_tool("tool", fails(KeyboardInterrupt())) == 130  # type: ignore[arg-type]
    assert capsys.readouterr().err.splitlines() == [
        "tool: --x: wrong",
        f"tool: {tmp_path / 'no' / 'file'}: the folder {tmp_path / 'no'} is not there; make it, or name another",
        f"tool: {tmp_path}: is a directory",
        "tool: interrupted",
    ]
    with pytest.raises(KeyError):
        run_tool("tool", fails(KeyError("a fault of ours")))


def test_errors_of_the_system_are_named_by_their_file(tmp_path: Path) -> None:
    assert described(PermissionError(13, "Permission denied", "/data/x")) == "/data/x: permission denied"
    assert described(OSError(30, "Read-only file system", "/data/x")) == "/data/x: read-only file system"
    file = tmp_path / "file"
    file.touch()
    for error in (FileExistsError(17, "File exists", str(file)), NotADirectoryError(20, "Not", str(file / "a" / "b"))):
        assert described(error).endswith(f": {file} is a file, not a folder; name another")
    assert described(OSError("no number")) == "no number"
    assert described(ValueError()) == "ValueError"


def test_a_reader_that_has_gone_ends_a_tool_in_silence() -> None:
    process = run_script(
        "sys.exit(run_tool('tool', lambda: [print('x' * 1000) for _ in range(10_000)] and 0))", stdout=subprocess.PIPE
    )
    assert process.stdout is not None
    process.stdout.read(10)
    process.stdout.close()
    _, errors = process.communicate(timeout=60)
    assert (process.returncode, errors) == (141, b"")


def test_a_full_disk_under_the_output_is_one_message() -> None:
    with open("/dev/full", "wb") as full:
        process = run_script("sys.exit(run_tool('tool', lambda: print('x')))", stdout=full)
        _, errors = process.communicate(timeout=60)
    assert (process.returncode, errors) == (1, b"tool: [Errno 28] No space left on device\n")


@pytest.mark.parametrize("sink", ["pipe", "/dev/full"])
def test_a_training_run_outlives_the_reader_of_its_output(tmp_path: Path, sink: str) -> None:
    body = (
        "outlive_readers()\n"
        "for number in range(3000):\n    print('x' * 100, number, flush=True)\n    print('e', file=sys.stderr)\n"
        f"open({str(tmp_path / 'done')!r}, 'w').write('all')"
    )
    read_end, write_end = os.pipe()
    os.close(read_end)
    target = write_end if sink == "pipe" else os.open(sink, os.O_WRONLY)
    process = run_script(body, wanted="outlive_readers", stdout=target)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 0 and (tmp_path / "done").read_text() == "all"
    assert errors == b"e\n" * 3000
    for descriptor in {write_end, target}:
        os.close(descriptor)


def example_parser() -> ToolParser:
    parser = ToolParser("Does something.\n\n    tool.py this way")
    parser.add_argument("--size", type=int, default=3, help="how large")
    parser.add_argument("--keys", nargs="+", default=["text", "title"], help="which")
    parser.add_argument("--share", type=float, default=0.1, help="a part; by default 10 %%")
    parser.add_argument("--quick", action="store_true", help="leave out a check")
    parser.add_argument("--name", help="of the thing")
    commands = parser.add_subparsers(dest="command")
    commands.add_parser("sub", help="a command").add_argument("--depth", type=int, default=7, help="how deep")
    return parser


def test_help_tells_every_default_once_and_keeps_the_text(capsys: pytest.CaptureFixture[str]) -> None:
    text = example_parser().format_help()
    assert "    tool.py this way" in text
    assert "how large (default: 3)" in text and "which (default: text title)" in text
    assert "by default 10 %\n" in text and text.count("default") == 3
    with pytest.raises(SystemExit):
        example_parser().parse_args(["sub", "--help"])
    shown = capsys.readouterr().out
    assert "how deep (default: 7)" in shown and "--print-completion" not in shown


@pytest.mark.parametrize("shell", SHELLS)
def test_completion_is_printed_for_each_shell(capsys: pytest.CaptureFixture[str], shell: str) -> None:
    with pytest.raises(SystemExit) as stopped:
        example_parser().parse_args(["--print-completion", shell])
    script = capsys.readouterr().out
    assert stopped.value.code == 0 and "size" in script and "depth" in script


def test_completion_completes_in_bash(tmp_path: Path) -> None:
    script = tmp_path / "complete.bash"
    body = (
        "parser = ToolParser('Does something.', prog='syne-tool')\n"
        "parser.add_argument('--vocab-size', type=int, help='size')\n"
        "parser.add_argument('--mode', choices=('fast', 'slow'), help='how')\n"
        "parser.parse_args(['--print-completion', 'bash'])"
    )
    with open(script, "wb") as file:
        assert run_script(body, wanted="ToolParser", stdout=file).wait(60) == 0
    ask = (
        f"source {script}; function=$(complete -p syne-tool | sed 's/.*-F \\([^ ]*\\).*/\\1/')\n"
        "COMP_WORDS=(syne-tool --vo) COMP_CWORD=1; $function syne-tool --vo syne-tool; echo ${COMPREPLY[@]}\n"
        "COMP_WORDS=(syne-tool --mode s) COMP_CWORD=2; $function syne-tool s --mode; echo ${COMPREPLY[@]}"
    )
    found = subprocess.run(["bash", "-c", ask], capture_output=True, text=True, timeout=60)
    assert found.stdout.split() == ["--vocab-size", "slow"], found.stderr


def test_an_output_file_is_whole_or_absent(tmp_path: Path) -> None:
    with pytest.raises(KeyError), output_file(tmp_path / "new" / "file") as file:
        file.write(b"half")
        raise KeyError
    assert list((tmp_path / "new").iterdir()) == []


def test_what_a_killed_process_was_writing_is_removed(tmp_path: Path) -> None:
    left = tmp_path / "file.tmp-1"
    left.write_bytes(b"half")
    with output_file(tmp_path / "file") as file:  # another one still writes
        assert not left.exists()
        with output_file(tmp_path / "file.b") as other:
            other.write(b"b")
        file.write(b"a")
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == {"file": b"a", "file.b": b"b"}


def test_what_is_still_being_written_stays(tmp_path: Path) -> None:
    living = tmp_path / "file.tmp-1"
    with open(living, "wb") as writing:
        fcntl.flock(writing, fcntl.LOCK_EX)
        with output_file(tmp_path / "file") as file:
            file.write(b"a")
        assert living.exists()


def test_a_full_disk_is_told_by_the_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def write() -> None:
        with output_file(tmp_path / "file"), open("/dev/full", "wb") as full:
            full.write(b"no room")

    assert run_tool("tool", write) == 1
    assert capsys.readouterr().err == f"tool: {tmp_path / 'file'}: no space left on device\n"
    assert list(tmp_path.iterdir()) == []
