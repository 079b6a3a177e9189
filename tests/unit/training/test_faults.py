"""What stops a process: told once, remembered, and left alone by the writers of asynchronous saves."""

from __future__ import annotations

import signal
import subprocess
import sys

import pytest

from megatron_synE.training.faults import STOP_SIGNALS
from tests.helpers.commands import ROOT, environment

TIMEOUT_S = 60


def start(code: str) -> subprocess.Popen[str]:
    """A Python process with `stop`, a StopSignal, installed; it has said its first line when this returns."""
    prelude = """
import os, signal, sys, time
from megatron_synE.training import faults
stop = faults.StopSignal()
stop.install()
"""
    process = subprocess.Popen(
        [sys.executable, "-c", prelude + code], cwd=ROOT, env=environment(), text=True, stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )  # fmt: skip
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n", process.stderr.read()  # type: ignore[union-attr]
    return process


@pytest.mark.parametrize("number", STOP_SIGNALS, ids=lambda number: number.name)
def test_one_line_however_often_it_comes(number: signal.Signals) -> None:
    process = start("print('ready', flush=True); stop.wait(30); time.sleep(1); print(stop.told)")
    for _ in range(3):
        process.send_signal(number)
    out, err = process.communicate(timeout=TIMEOUT_S)
    assert (process.returncode, out) == (0, "True\n")
    assert err == f"pretrain_llama3_synE: {number.name}: stopping before the first step\n"


def test_while_training_it_stops_after_the_step_and_at_the_end_changes_nothing() -> None:
    process = start("""
stop.begin_training()
print('ready', flush=True)
stop.wait(30)
time.sleep(0.5)
stop.finish()
os.kill(os.getpid(), signal.SIGINT)
time.sleep(0.5)
""")
    process.send_signal(signal.SIGUSR1)
    _, err = process.communicate(timeout=TIMEOUT_S)
    assert process.returncode == 0
    assert err == "pretrain_llama3_synE: SIGUSR1: stopping after this step\n"


def test_a_startup_that_waits_for_ever_is_cut_off() -> None:
    process = start("""
faults.STARTUP_GRACE_SECONDS = 0.5
print('ready', flush=True)
while True:
    time.sleep(1)
""")
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=TIMEOUT_S)
    assert process.returncode == 1


def test_a_signal_is_seen_while_the_main_thread_is_inside_of_a_library() -> None:
    process = start("""
import ctypes
print('ready', flush=True)
reader, writer = os.pipe()
libc = ctypes.CDLL(None)
byte = ctypes.create_string_buffer(1)
import threading
def release():
    stop.wait(30)
    os.write(writer, b'x')
threading.Thread(target=release).start()
while libc.read(reader, byte, 1) != 1:
    pass
print('released')
""")
    process.send_signal(signal.SIGTERM)
    out, err = process.communicate(timeout=TIMEOUT_S)
    assert (process.returncode, out) == (0, "released\n"), err


def test_forked_writers_do_not_stop_and_die_with_their_parent() -> None:
    process = start("""
child = os.fork()
if child == 0:
    os.kill(os.getpid(), signal.SIGTERM)
    os.kill(os.getpid(), signal.SIGINT)
    print('ready', flush=True)
    time.sleep(60)
time.sleep(1)
assert not stop.told, 'the signal was for the child'
print('parent lives', flush=True)
time.sleep(60)
""")
    assert process.stdout is not None
    assert process.stdout.readline() == "parent lives\n"
    process.kill()
    process.communicate(timeout=TIMEOUT_S)  # the pipe ends when the child, which has it too, is gone


def test_the_entry_catches_signals_before_it_imports_what_takes_seconds() -> None:
    code = "import sys, pretrain_llama3_synE; print({'torch', 'numpy', 'jsonargparse'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=environment(), capture_output=True, text=True)
    assert done.stdout == "set()\n", done.stderr


def test_a_launcher_is_gone_when_its_first_thread_is() -> None:
    """Killed, its threads end in any order; while one lives, it is still the parent of its processes."""
    launched = """
import os
from megatron_synE.training import faults
stop = faults.StopSignal(os.getppid())
stop.install()
stop.begin_training()
print("ready", flush=True)
stop.wait(30)
import time; time.sleep(0.5)
"""
    launcher = f"""
import ctypes, subprocess, sys, threading, time
child = subprocess.Popen([sys.executable, "-c", {launched!r}], stdout=subprocess.PIPE)
child.stdout.readline()
threading.Thread(target=time.sleep, args=(3,)).start()
ctypes.CDLL(None).pthread_exit(None)
"""
    process = subprocess.Popen(
        [sys.executable, "-c", launcher], cwd=ROOT, env=environment(), text=True, stderr=subprocess.PIPE
    )
    _, err = process.communicate(timeout=TIMEOUT_S)
    assert err == "pretrain_llama3_synE: the launcher is gone: stopping after this step\n"
