"""Kill a synthesis job again and again, and compare it with one that nobody disturbed.

    python -m tests.e2e.synthesis_kills --kills 50

Two processes share the job. Each is killed at a random moment, or at a random one of its calls that change a file,
which meets the steps between journal and rename too; then it is started again. At the end the finished shards must be
those of the undisturbed job, byte for byte, and no more may have been paid twice than was in flight at the kills.
"""

from __future__ import annotations

import argparse
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from tests.helpers.commands import ROOT, environment
from tests.helpers.fault_server import ANSWER_FAULTS, LASTING_FAULTS, Behaviour, FaultServer, fault_server
from tests.helpers.synthesis import config, prepare, result_files, run_toy, write_config

FAULTS = dict.fromkeys(("429 retry-after", "500", "reset", "cut", *ANSWER_FAULTS, *LASTING_FAULTS), 0.02)
WINDOW = 16
NUM_PROCESSES = 2


@dataclass
class Toll:
    """What the kills cost."""

    num_kills: int = 0
    num_paid: int = 0
    num_paid_twice: int = 0


def start(config_file: Path, die_at: int | None) -> subprocess.Popen[bytes]:
    """A process of the job."""
    command = [sys.executable, "-m", "tests.helpers.synthesis", str(config_file)]
    command += [] if die_at is None else [str(die_at)]
    return subprocess.Popen(command, cwd=ROOT, env=environment(), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)


def play(folder: Path, num_kills: int, num_snippets: int, seed: int, say: Callable[[str], object]) -> Toll:
    """One job undisturbed, one disturbed; AssertionError where they differ."""
    chance, toll = random.Random(seed), Toll()
    calm, stormy = (prepare(folder / name, num_snippets, shard_rows=64) for name in ("calm", "stormy"))
    with fault_server(Behaviour(FAULTS)) as server:
        run_toy(config(calm.root, server.url))
    with fault_server(Behaviour(FAULTS, latency_seconds=0.02)) as server:
        job = write_config(folder / "job.json", config(stormy.root, server.url, pace={"window": WINDOW}))
        kill_again_and_again(job, server, chance, num_kills, toll, say)
        for process in [start(job, None) for _ in range(NUM_PROCESSES)]:
            _, errors = process.communicate(timeout=300)
            assert process.returncode == 0, errors.decode()
        toll.num_paid = sum(server.paid.values())
        toll.num_paid_twice = toll.num_paid - len(server.paid)
    found, wanted = result_files(stormy), result_files(calm)
    assert found.keys() == wanted.keys(), sorted(found.keys() ^ wanted.keys())
    assert [name for name in wanted if found[name] != wanted[name]] == []
    assert toll.num_paid_twice <= toll.num_kills * WINDOW, toll
    left = [path.name for name in ("journal", "claims") for path in (stormy.root / name).iterdir()]
    assert left == [], left
    return toll


def kill_again_and_again(
    job: Path, server: FaultServer, chance: random.Random, num_kills: int, toll: Toll, say: Callable[[str], object],
    longest_seconds: float = 3.0,
) -> None:  # fmt: skip
    """Until so many were killed, or the job is done."""
    processes: list[subprocess.Popen[bytes]] = []
    done = 0
    while toll.num_kills < num_kills and done < NUM_PROCESSES:
        while len(processes) < NUM_PROCESSES:
            die_at = chance.choice([None, chance.randint(1, 40), chance.randint(1, 400)])
            processes.append(start(job, die_at))
        paid_before = sum(server.paid.values())
        victim = processes.pop(0)
        deadline = time.monotonic() + chance.uniform(0.2, longest_seconds)
        while time.monotonic() < deadline and victim.poll() is None:
            time.sleep(0.01)
        victim.kill()
        _, errors = victim.communicate()
        if victim.returncode == 0:
            done += 1
            continue
        assert victim.returncode == -9, errors.decode()
        toll.num_kills += 1
        say(f"kill {toll.num_kills}: {sum(server.paid.values()) - paid_before} answers since the last")
    for process in processes:
        process.kill()
        process.communicate()
        toll.num_kills += 1


def main() -> None:
    """Play and tell."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--snippets", type=int, help="default: 120 for each kill")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        num_snippets = arguments.snippets or 120 * arguments.kills
        print(play(Path(name), arguments.kills, num_snippets, arguments.seed, print))


if __name__ == "__main__":
    main()
