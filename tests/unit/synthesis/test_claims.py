"""Who has a shard: the living, never the dead, never two."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import orjson
import pytest

from megatron_synE.synthesis import claims
from megatron_synE.synthesis.claims import Claim, Claims, read_owner

TAKE = """
import sys, time
from pathlib import Path
from megatron_synE.synthesis.claims import Claims
claim = Claims(Path(sys.argv[1]).parent).take(Path(sys.argv[1]))
print("taken" if claim else "refused", flush=True)
sys.stdin.read()
"""


def other_process(path: Path) -> subprocess.Popen[str]:
    """One that takes the claim and holds it until it is killed."""
    command = [sys.executable, "-c", TAKE, str(path)]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def answer_of(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline().strip()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "claims" / "00007.lock"


def take(path: Path) -> Claim | None:
    return Claims(path.parent).take(path)


def test_a_claim_is_one_processs_until_it_gives_it_back(path: Path) -> None:
    claim = take(path)
    assert claim is not None and take(path) is None
    process = other_process(path)
    assert answer_of(process) == "refused"
    process.communicate()
    claim.release()
    assert list(path.parent.iterdir()) == []
    again = take(path)
    assert again is not None
    again.release()


def test_the_claim_of_a_process_that_was_killed_is_free_at_once(path: Path) -> None:
    process = other_process(path)
    assert answer_of(process) == "taken"
    process.kill()
    process.communicate()
    claim = take(path)
    assert claim is not None and claim.is_ours()
    assert [entry.name for entry in path.parent.iterdir()] == [path.name]
    claim.release()


def foreign(path: Path, beat: int = 3) -> None:
    """The claim of a process of another machine, whose lock does not reach here."""
    path.parent.mkdir(parents=True, exist_ok=True)
    owner = {"token": "t", "host": "other", "machine": "another", "pid": 1, "beat": beat, "paid": {}}
    path.write_bytes(orjson.dumps(owner))


def test_the_claim_of_another_machine_is_taken_when_it_is_silent(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr(claims.time, "monotonic", lambda: now[0])
    foreign(path)
    seen = Claims(path.parent)
    assert seen.take(path) is None and seen.undecided == {path}
    now[0] += claims.SILENT_SECONDS - 1
    assert seen.take(path) is None
    foreign(path, beat=4)
    assert seen.take(path) is None and seen.undecided == set()  # it lives
    now[0] += claims.SILENT_SECONDS + 1
    claim = seen.take(path)
    assert claim is not None and read_owner(path) is not None
    claim.release()


def test_of_two_that_would_take_a_dead_claim_one_does(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a file system without flock, and on two machines."""
    monkeypatch.setattr(claims, "_lock", lambda descriptor: None)
    monkeypatch.setattr(claims, "SILENT_SECONDS", -1.0)
    foreign(path)
    one, two = Claims(path.parent), Claims(path.parent)
    assert one.take(path) is None and two.take(path) is None
    taken = [one.take(path)]
    foreign(path)  # as the second read it, a moment ago
    path.with_name(f"{path.name}.t.taken").touch()
    taken.append(two.take(path))
    assert [claim is not None for claim in taken] == [True, False]
    assert taken[0] is not None and not taken[0].beat({})  # the record is another's: it is lost


def test_a_taker_that_died_on_its_way_holds_up_nobody_for_ever(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr(claims.time, "monotonic", lambda: now[0])
    foreign(path)
    seen, marker = Claims(path.parent), path.with_name(f"{path.name}.t.taken")
    marker.touch()
    assert seen.take(path) is None
    now[0] += claims.SILENT_SECONDS + 1
    assert seen.take(path) is None and marker.exists()  # its maker may be about to write
    now[0] += claims.SILENT_SECONDS
    assert seen.take(path) is None
    claim = seen.take(path)
    assert claim is not None
    marker.touch()  # of one that died when it had the claim
    Claims(path.parent)
    assert [entry.name for entry in path.parent.iterdir()] == [path.name]
    claim.release()


def test_an_owner_learns_that_its_claim_was_taken(path: Path) -> None:
    claim = take(path)
    assert claim is not None and claim.beat({"toy": {}})
    owner = read_owner(path)
    assert owner is not None and (owner.beat, owner.paid, owner.pid) == (1, {"toy": {}}, os.getpid())
    foreign(path)
    assert not claim.is_ours() and not claim.beat({})
    claim.release()
    assert path.exists()  # the other one's


def test_what_killed_processes_left_is_removed_and_what_lives_is_kept(path: Path) -> None:
    path.parent.mkdir(parents=True)
    dead, living = path.parent / "00001.lock.abc.new", path.parent / "reserve.abc.new"
    dead.touch()
    with open(living, "w") as file:
        claims._lock(file.fileno())
        Claims(path.parent)
        assert [entry.name for entry in path.parent.iterdir()] == [living.name]
