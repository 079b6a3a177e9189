"""Who gets a run's folder: one of two, the successor of a dead owner, nobody beside a living one."""

from __future__ import annotations

import dataclasses
import json
import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from megatron_synE.runtime import run_lock
from megatron_synE.runtime.run_lock import LOCK_FILE, Owner, RunLock

SPAWN = multiprocessing.get_context("spawn")
PATIENCE_SECONDS = 200.0


def lock_of(folder: Path, lost: Callable[[str], None] = lambda message: None, ending: bool = False) -> RunLock:
    return RunLock({"checkpoint.save": folder}, is_ending=lambda: ending, on_lost=lost)


@pytest.fixture(autouse=True)
def hurry(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same order of events in less time."""
    for name, seconds in {"BEAT": 0.1, "SILENT": 1.5, "PATIENCE": 0.4, "ENDING_PATIENCE": 20.0, "SETTLE": 0.5,
                          "POLL": 0.05}.items():  # fmt: skip
        monkeypatch.setattr(run_lock, f"{name}_SECONDS", seconds)


@pytest.fixture(params=[True, False], ids=["flock", "no flock"])
def flock(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> bool:
    if not request.param:
        monkeypatch.setattr(run_lock.FolderLock, "_flock", lambda self: None)
    return request.param


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return tmp_path / "run"


def write_record(run: Path, **changes: object) -> None:
    run.mkdir(exist_ok=True)
    owner = dataclasses.replace(Owner.this_process(), **changes)  # type: ignore[arg-type]
    text = json.dumps(dataclasses.asdict(owner)).encode().ljust(run_lock.RECORD_BYTES)
    descriptor = os.open(run / LOCK_FILE, os.O_RDWR | os.O_CREAT)
    os.pwrite(descriptor, text, 0)  # in one piece, as an owner does: never an empty file between two records
    os.close(descriptor)


def test_the_second_start_is_refused_and_the_first_leaves_nothing_behind(run: Path, flock: bool) -> None:
    first = lock_of(run)
    first.acquire()
    with pytest.raises(ValueError, match=rf"checkpoint\.save: {run} is in use by host .* pid {os.getpid()} since .*; "
                                         "stop that run or choose another folder"):  # fmt: skip
        lock_of(run).acquire()
    first.release()
    assert list(run.iterdir()) == []
    second = lock_of(run)
    second.acquire()
    second.release()


def test_all_folders_or_none(tmp_path: Path) -> None:
    holder = RunLock({"logging.directory": tmp_path / "b"}, is_ending=lambda: False, on_lost=print)
    holder.acquire()
    both = {"checkpoint.save": tmp_path / "a", "logging.directory": tmp_path / "b"}
    with pytest.raises(ValueError, match=r"logging\.directory: "):
        RunLock(both, is_ending=lambda: False, on_lost=print).acquire()
    alone = lock_of(tmp_path / "a")
    alone.acquire()
    alone.release()
    holder.release()


def test_one_folder_under_two_fields_is_locked_once(run: Path) -> None:
    lock = RunLock({"checkpoint.save": run, "logging.directory": f"{run}/."}, is_ending=lambda: False, on_lost=print)
    lock.acquire()
    lock.release()


def hold(run: Path, without_flock: bool) -> None:
    if without_flock:
        run_lock.FolderLock._flock = lambda self: None  # type: ignore[method-assign]
    lock_of(run).acquire()
    time.sleep(60)


def test_the_successor_of_a_killed_owner(run: Path, flock: bool) -> None:
    owner = SPAWN.Process(target=hold, args=(run, not flock))
    owner.start()
    while not (run / LOCK_FILE).exists() or not (run / LOCK_FILE).read_bytes():
        time.sleep(0.02)
    assert owner.pid is not None
    with pytest.raises(ValueError, match=f"pid {owner.pid} "):
        lock_of(run).acquire()
    os.kill(owner.pid, signal.SIGKILL)
    owner.join()
    lock = lock_of(run)
    lock.acquire()
    lock.release()


def test_a_process_with_the_number_of_a_dead_owner_is_not_the_owner(run: Path, flock: bool) -> None:
    write_record(run, start_ticks=1)
    lock = lock_of(run)
    lock.acquire()
    lock.release()


def test_a_dead_machine_loses_the_folder_after_the_stated_silence(run: Path, flock: bool) -> None:
    write_record(run, machine="another", host="node7")
    start = time.monotonic()
    lock = lock_of(run)
    lock.acquire()
    assert time.monotonic() - start > run_lock.SILENT_SECONDS
    lock.release()


@pytest.fixture
def beating(run: Path) -> Iterator[None]:
    """An owner on another machine, alive."""
    stop = threading.Event()

    def beat() -> None:
        number = 0
        while not stop.wait(0.2):
            number += 1
            write_record(run, machine="another", host="node7", token="t", heartbeat=number)

    write_record(run, machine="another", host="node7", token="t")
    thread = threading.Thread(target=beat)
    thread.start()
    yield
    stop.set()
    thread.join()


def test_a_living_machine_keeps_the_folder(
    run: Path, flock: bool, beating: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run_lock, "SILENT_SECONDS", 60.0)  # a busy machine is not a dead one
    with pytest.raises(ValueError, match="in use by host node7"):
        lock_of(run).acquire()


def test_a_start_waits_for_an_owner_that_is_ending(run: Path) -> None:
    first = lock_of(run, ending=True)
    first.acquire()
    while not json.loads((run / LOCK_FILE).read_bytes())["ending"]:
        time.sleep(0.02)
    threading.Timer(3 * run_lock.PATIENCE_SECONDS, first.release).start()
    second = lock_of(run)
    second.acquire()
    second.release()


def test_an_owner_whose_folder_was_taken_is_told(run: Path) -> None:
    told: list[str] = []
    lock = lock_of(run, lost=told.append)
    lock.acquire()
    write_record(run, machine="another", host="node7")
    while not told:
        time.sleep(0.02)
    assert "was taken by host node7" in told[0]
    lock.release()
    assert (run / LOCK_FILE).exists(), "it belongs to the other"


def compete(run: Path, without_flock: bool, start: Any, over: Any, queue: multiprocessing.Queue[str]) -> None:
    run_lock.PATIENCE_SECONDS, run_lock.SETTLE_SECONDS = 0.2, 1.0  # type: ignore[misc]
    if without_flock:
        run_lock.FolderLock._flock = lambda self: None  # type: ignore[method-assign]
    lock = lock_of(run)
    start.wait(PATIENCE_SECONDS)  # imports take long on a busy machine
    try:
        lock.acquire()
        queue.put("won")
        over.wait(PATIENCE_SECONDS)
    except ValueError as error:
        queue.put(str(error))


def test_of_starts_at_the_same_instant_one_wins(run: Path, flock: bool) -> None:
    write_record(run, start_ticks=1)  # of a dead owner: all may have it
    queue: multiprocessing.Queue[str] = SPAWN.Queue()
    over = SPAWN.Event()
    arguments = (run, not flock, SPAWN.Barrier(4), over, queue)
    starts = [SPAWN.Process(target=compete, args=arguments) for _ in range(4)]
    for process in starts:
        process.start()
    answers = [queue.get(timeout=PATIENCE_SECONDS) for _ in starts]
    over.set()
    for process in starts:
        process.join(PATIENCE_SECONDS)
    assert sorted(answer == "won" for answer in answers) == [False, False, False, True], answers
    assert all("is in use by host" in answer for answer in answers if answer != "won")


def test_a_folder_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match=r"checkpoint\.save: .* cannot be written to"):
        lock_of(tmp_path / "file" / "run").acquire()
