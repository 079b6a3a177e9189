"""The staging folder: what it goes on from, whoever dies in it, and who may work there."""

from __future__ import annotations

import fcntl
import logging
import os
from pathlib import Path
from typing import Any

import pytest

from megatron_synE.corpus.staging import Staging

FILES = {"a": True, "b": False}


def begun(folder: Path) -> None:
    """Two marks, and what was written behind the second."""
    staging = Staging(folder, {"job": 1})
    staging.open_files(FILES)
    for number in (1, 2):
        for name in FILES:
            staging.file(name).write(bytes([number]) * 100)
        staging.mark({"place": number})
    staging.file("a").write(b"lost")
    staging.release()


def test_it_goes_on_from_the_last_mark(tmp_path: Path) -> None:
    begun(tmp_path / "f")
    with Staging(tmp_path / "f", {"job": 1}) as staging:
        staging.open_files(FILES)
        assert staging.state == {"place": 2} and staging.num_bytes == 400
        assert staging.file("a").path.read_bytes() == b"\1" * 100 + b"\2" * 100


@pytest.mark.parametrize("step", range(4))
def test_a_restart_that_dies_loses_no_mark(tmp_path: Path, step: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Before each change of a file in turn, where the newest mark does not hold any more."""
    begun(tmp_path / "f")
    with open(tmp_path / "f" / "b", "r+b") as file:
        file.truncate(150)
    calls = 0

    def dying(function: Any) -> Any:
        def called(*arguments: Any) -> Any:
            nonlocal calls
            calls += 1
            if calls > step:
                raise KeyboardInterrupt
            return function(*arguments)

        return called

    for name in ("truncate", "fsync", "replace"):
        monkeypatch.setattr(os, name, dying(getattr(os, name)))
    with pytest.raises(KeyboardInterrupt), Staging(tmp_path / "f", {"job": 1}) as staging:
        staging.open_files(FILES)
    monkeypatch.undo()
    with Staging(tmp_path / "f", {"job": 1}) as staging:
        staging.open_files(FILES)
        assert staging.state == {"place": 1}


def test_one_process_at_a_time(tmp_path: Path) -> None:
    with Staging(tmp_path / "f", {"job": 1}), pytest.raises(ValueError, match="another process is writing this output"):
        Staging(tmp_path / "f", {"job": 1})
    assert list(tmp_path.iterdir()) == []


def test_a_file_system_without_locks_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def no_locks(*_: Any) -> None:
        raise OSError(38, "Function not implemented")

    monkeypatch.setattr(fcntl, "flock", no_locks)
    with caplog.at_level(logging.WARNING), Staging(tmp_path / "f"):
        assert "no locks here (Function not implemented)" in caplog.text
    assert list(tmp_path.iterdir()) == []


def test_work_that_can_go_on_is_not_removed_by_other_work(tmp_path: Path) -> None:
    begun(tmp_path / "f")
    before = {path.name: path.read_bytes() for path in (tmp_path / "f").iterdir()}
    for job, message in (({"job": 2}, "job was 1 and is now 2"), (None, "it makes something else")):
        with pytest.raises(ValueError, match=message):
            Staging(tmp_path / "f", job)
    assert {path.name: path.read_bytes() for path in (tmp_path / "f").iterdir()} == before
    (tmp_path / "f" / "job.json").write_text("{")
    with pytest.raises(ValueError, match=r"job\.json: damaged .* delete the folder"):
        Staging(tmp_path / "f", {"job": 1})


def test_a_full_disk_is_told_with_its_place(tmp_path: Path) -> None:
    with pytest.raises(OSError, match=r"No space left on device: '.*/f'"), Staging(tmp_path / "f"):
        raise OSError(28, "No space left on device")
    assert list(tmp_path.iterdir()) == []
