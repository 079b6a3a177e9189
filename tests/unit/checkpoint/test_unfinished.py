"""Directories that survive a kill: what is kept, what is thrown away, and what a full disk says."""

from __future__ import annotations

import errno
import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import xxhash

from megatron_synE.checkpoint import unfinished as unfinished_module
from megatron_synE.checkpoint.checksummed_file import ChecksummedFile
from megatron_synE.checkpoint.files import file_checksum
from megatron_synE.checkpoint.unfinished import unfinished_directory
from tests.helpers.progress import recorded_bars

IDENTITY = {"source": "a"}


def _fill(content: bytes, calls: list[bytes]) -> Any:
    def fill(file: ChecksummedFile) -> dict[str, int]:
        calls.append(content)
        file.write(content)
        return {"length": len(content)}

    return fill


def _begin(place: Path, identity: dict[str, str] = IDENTITY) -> list[bytes]:
    """Write one file as a process does that is killed before the second; returns what was really written."""
    calls: list[bytes] = []
    with pytest.raises(KeyboardInterrupt), unfinished_directory(place, identity, 100) as unfinished:
        assert unfinished.write("one", _fill(b"first", calls)) == {"length": 5}
        (unfinished.directory / "half").write_bytes(b"x")
        raise KeyboardInterrupt
    return calls


def test_what_was_finished_is_kept(tmp_path: Path) -> None:
    place, target = tmp_path / ".unfinished", tmp_path / "final"
    assert _begin(place) == [b"first"]
    assert _begin(place) == []
    with open(place / "journal", "a", encoding="utf-8") as file:
        file.write('{"file": "two", "by')  # a kill in the middle of a line
    assert _begin(place) == []
    calls: list[bytes] = []
    with unfinished_directory(place, IDENTITY, 100) as unfinished:
        assert not (unfinished.directory / "half").exists()
        assert unfinished.write("one", _fill(b"first", calls)) == {"length": 5}
        unfinished.write("two", _fill(b"second", calls))
        assert unfinished.checksums() == {"one": xxhash.xxh3_128_hexdigest(b"first"),
                                          "two": xxhash.xxh3_128_hexdigest(b"second")}  # fmt: skip
        unfinished.rename(target)
    assert calls == [b"second"]
    assert {path.name: path.read_bytes() for path in target.iterdir()} == {"one": b"first", "two": b"second"}
    assert not place.exists()


def _shorten(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def _flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[2] ^= 4
    path.write_bytes(content)


@pytest.mark.parametrize("damage", [_shorten, _flip, Path.unlink])
def test_a_damaged_file_is_written_again(tmp_path: Path, damage: Any) -> None:
    _begin(tmp_path / "place")
    damage(tmp_path / "place" / "files" / "one")
    assert _begin(tmp_path / "place") == [b"first"]
    assert (tmp_path / "place" / "files" / "one").read_bytes() == b"first"


def test_another_identity_starts_afresh(tmp_path: Path) -> None:
    _begin(tmp_path / "place")
    assert _begin(tmp_path / "place", {"source": "b"}) == [b"first"]
    (tmp_path / "place" / "journal").write_bytes(b"\xff\n")
    assert _begin(tmp_path / "place", {"source": "b"}) == [b"first"]


def test_nothing_finished_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt), unfinished_directory(tmp_path / "place", IDENTITY, 100):
        raise KeyboardInterrupt
    assert list(tmp_path.iterdir()) == []


def test_a_second_process_is_refused(tmp_path: Path) -> None:
    with unfinished_directory(tmp_path / "place", IDENTITY, 100) as unfinished:
        unfinished.write("one", _fill(b"first", []))
        with (
            pytest.raises(ValueError, match="another process is writing here"),
            unfinished_directory(tmp_path / "place", {"source": "b"}, 100),
        ):
            pass
        assert (unfinished.directory / "one").read_bytes() == b"first"


def test_too_little_space_is_said_before_anything_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(10**6, 0, 4000))  # type: ignore[attr-defined]
    with (
        pytest.raises(ValueError, match=r"too full: 1,234,567 bytes are needed, 4,000 are free; make room"),
        unfinished_directory(tmp_path / "new" / "place", IDENTITY, 1234567),
    ):
        pass
    assert not (tmp_path / "new" / "place").exists()


def test_a_disk_that_fills_up_keeps_what_is_finished(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_space(self: ChecksummedFile, content: Any) -> int:
        self.error = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        raise RuntimeError("what torch.save makes of it")

    _begin(tmp_path / "place")
    monkeypatch.setattr(ChecksummedFile, "write", no_space)
    with (
        pytest.raises(ValueError, match=r"too full: 95 bytes are needed, .* 5 bytes are finished and kept"),
        unfinished_directory(tmp_path / "place", IDENTITY, 100) as unfinished,
    ):
        unfinished.write("one", _fill(b"first", []))
        unfinished.write("two", _fill(b"second", []))
    monkeypatch.undo()
    assert not (tmp_path / "place" / "files" / "two").exists()
    assert _begin(tmp_path / "place") == []


def test_a_kill_at_any_write_loses_no_finished_file(tmp_path: Path) -> None:
    script = (
        "import os, sys; from pathlib import Path\n"
        "from megatron_synE.checkpoint.unfinished import unfinished_directory\n"
        "with unfinished_directory(Path(sys.argv[1]), {}, 0) as unfinished:\n"
        "    for number in range(4):\n"
        "        def fill(file):\n"
        "            print(number, flush=True); file.write(b'x' * 10)\n"
        "            if int(sys.argv[2]) == number: os.kill(os.getpid(), 9)\n"
        "        unfinished.write(str(number), fill)\n"
    )
    written = []
    for stop in (0, 2, 2, 9):
        done = subprocess.run(
            [sys.executable, "-c", script, str(tmp_path / "place"), str(stop)], capture_output=True, text=True
        )
        assert done.returncode == (-signal.SIGKILL if stop < 4 else 0), done.stderr
        written.append(done.stdout.split())
    assert written == [["0"], ["0", "1", "2"], ["2"], ["2", "3"]]


def test_the_journal_is_json_lines(tmp_path: Path) -> None:
    _begin(tmp_path / "place")
    first, second = map(json.loads, (tmp_path / "place" / "journal").read_text().splitlines())
    assert first == {"identity": IDENTITY}
    assert second == {"file": "one", "bytes": 5, "checksum": file_checksum(tmp_path / "place/files/one"),
                      "facts": {"length": 5}}  # fmt: skip


def test_a_place_that_is_a_file(tmp_path: Path) -> None:
    (tmp_path / "place").write_text("x")
    with pytest.raises(ValueError, match="cannot be written"), unfinished_directory(tmp_path / "place", IDENTITY, 1):
        pass


def test_the_bar_counts_what_is_written_and_what_a_killed_process_had_finished(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bars = recorded_bars(monkeypatch, unfinished_module)
    with pytest.raises(KeyboardInterrupt), unfinished_directory(tmp_path / "place", IDENTITY, 100) as unfinished:
        unfinished.write("a", _fill(b"x" * 60, []))
        raise KeyboardInterrupt
    with unfinished_directory(tmp_path / "place", IDENTITY, 100) as unfinished:
        unfinished.write("a", _fill(b"x" * 60, []))
        unfinished.write("b", _fill(b"y" * 40, []))
    assert [(bar.total, bar.first, bar.told) for bar in bars] == [(100, 0, [60]), (100, 60, [100])]
