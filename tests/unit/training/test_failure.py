"""What a person and torchrun are told of an error."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from megatron_synE.runtime.peers import Peer, Peers
from megatron_synE.training import failure


def alone() -> Peers:
    return Peers(0, [Peer.this_process()], None)


def never(seconds: float) -> bool:
    raise AssertionError("nothing to wait for")


def test_a_mistake_is_told_without_its_traceback_also_to_torchrun(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "error.json"
    monkeypatch.setenv("TORCHELASTIC_ERROR_FILE", str(file))
    monkeypatch.setenv("RANK", "3")
    failure.report(ValueError("optimizer.lr: is wrong"), alone(), never)
    assert capsys.readouterr().err == "pretrain_llama3_synE (process 3): optimizer.lr: is wrong\n"
    message = json.loads(file.read_text())["message"]
    assert message["message"] == "ValueError: optimizer.lr: is wrong"
    assert message["extraInfo"]["py_callstack"] == "optimizer.lr: is wrong"
    assert int(message["extraInfo"]["timestamp"]) > 0


def test_an_error_of_ours_is_told_with_its_traceback(capsys: pytest.CaptureFixture[str]) -> None:
    try:
        raise KeyError("surprise")
    except KeyError as error:
        failure.report(error, alone(), never)
    err = capsys.readouterr().err
    assert err.count("Traceback") == 1 and "test_failure.py" in err and "KeyError: 'surprise'" in err


def test_a_lost_connection_names_the_dead_process() -> None:
    dead = Peer(**{**vars(Peer.this_process()), "start_ticks": 1})
    text = failure.describe(
        RuntimeError("[tcp.cc:553] Connection closed by peer [::1]:5. Look at …"),
        Peers(0, [Peer.this_process(), dead], None),
    )
    assert text == (
        "process 1 of this run has died; the run cannot go on without ([tcp.cc:553] Connection closed by peer [::1]:5)"
    )


@pytest.mark.parametrize("ended, told", [(True, ""), (False, "pretrain_llama3_synE (process 1): no such file\n")])
def test_before_the_processes_meet_the_first_tells(
    ended: bool, told: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("RANK", "1")
    failure.report(ValueError("no such file"), None, lambda seconds: ended)
    assert capsys.readouterr().err == told


@pytest.mark.parametrize("ended, told", [(True, ""), (False, "pretrain_llama3_synE (process 1): forgotten\n")])
def test_where_the_run_ends_itself_the_first_tells(
    ended: bool, told: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("RANK", "1")
    failure.report(failure.RunEnded("forgotten"), alone(), lambda seconds: ended)
    assert capsys.readouterr().err == told


def test_who_fails_second_leaves_after_the_one_that_tells(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """torchrun names the process whose end it sees first."""
    peers, waited = alone(), []
    monkeypatch.setattr(peers, "is_first", lambda topic: False)

    def wait(seconds: float) -> bool:
        waited.append(seconds)
        return True

    failure.report(ValueError("told elsewhere"), peers, wait)
    assert waited == [failure.SECONDS_FOR_THE_FIRST_PROCESS] and capsys.readouterr().err == ""


LEAVING = """
import sys, threading, time
import torch
from megatron_synE.training.failure import leave

store = torch.distributed.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)

def speak():
    while True:
        store.add("life", 1)

def write():
    time.sleep(0.5)
    print("written", flush=True)

threading.Thread(target=speak, daemon=True).start()
threading.Thread(target=write).start()
time.sleep(0.1)
leave(0)
"""


def test_leaving_waits_for_who_writes_and_not_for_who_speaks() -> None:
    """The interpreter's own end aborts such a process: "terminate called without an active exception"."""
    ended = subprocess.run([sys.executable, "-c", LEAVING], capture_output=True, text=True, timeout=120)
    assert (ended.returncode, ended.stdout, ended.stderr) == (0, "written\n", "")
