"""Runs are disturbed, started again, and have to end as if nothing had happened, or refuse with one clear word.

    python -m tests.e2e.torture --rounds 200 --seed 1 [--only KIND …] [--round N …] [--folder DIR]

Each round takes the folder of a run of 16 steps as a killed run may have left it (from the start, or from one of its
checkpoints), starts it with two processes, disturbs it at a random moment (`tests.helpers.disturbances` lists how), and
starts the same command again until it comes to its end. The verdict compares with an undisturbed run: each logged step,
evaluation and decision bit for bit and once; the state of the stream and the documents read in each step; nothing left
behind. At another layout numbers may differ by 1e-5, and the topics' shares move at given points instead of by measured
perplexities. At other batch sizes each sample is read once. Refused is with one message that names the file or field.

A line a round: number, kind, moment, verdict, seconds. The last line is a JSON summary. Of a round that fails the
folder stays, and the command that repeats it is printed. Moments are chosen by seed and number alone, but meet another
place of the run on a machine of another speed.

Most processes are forked from an interpreter that has imported everything, and run `pretrain_llama3_synE.py` in the
environment that torchrun sets: a start takes two seconds instead of eight. With the real torchrun run the first
reference and what concerns its agent: kill_agent, signal_agent and signal_group.
"""

from __future__ import annotations

import argparse
import json
import random
import shutil
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.helpers.arena import Failed, Reference, Round, Skipped, make_reference
from tests.helpers.disturbances import KINDS, UNMEASURED
from tests.helpers.launch import Server, warm_server


@dataclass(frozen=True)
class Arena:
    """What all rounds share."""

    server: Server
    measured: Reference
    unmeasured: Reference
    folder: Path
    seed: int


@dataclass(frozen=True)
class Outcome:
    """How a round ended."""

    number: int
    kind: str
    moment: str
    verdict: str
    result: str
    """`held`, `failed` or `skipped`."""
    seconds: float

    def __str__(self) -> str:
        sign = {"held": " ", "failed": "!", "skipped": "-"}[self.result]
        return f"{sign}{self.number:4d}  {self.kind:16}  {self.seconds:5.1f} s  {self.moment}: {self.verdict}"


@contextmanager
def open_arena(folder: Path, seed: int) -> Iterator[Arena]:
    """The warm server and the undisturbed runs."""
    with warm_server() as server:
        measured = make_reference(server, folder / "measured", measured=True)
        unmeasured = make_reference(server, folder / "unmeasured", measured=False)
        yield Arena(server, measured, unmeasured, folder, seed)


def deck(seed: int, kinds: Sequence[str], rounds: int) -> list[str]:
    """The kind of each round: all of them in one random order, then all in another, and so on."""
    shuffle, found = random.Random(seed), []
    while len(found) < rounds:
        found += shuffle.sample(sorted(kinds), len(kinds))
    return found[:rounds]


def play(arena: Arena, number: int, kind: str, disturb: Callable[[Round], str] | None = None) -> Outcome:
    """One round; `disturb` is by default the kind's own."""
    disturb = disturb or KINDS[kind]
    folder = arena.folder / f"round_{number:03d}_{kind.replace(' ', '_')}"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    reference = arena.unmeasured if kind in UNMEASURED else arena.measured
    this = Round(arena.server, reference, folder, random.Random(f"{arena.seed} {number} {kind}"))
    started = time.monotonic()
    try:
        verdict, result = disturb(this), "held"
    except Skipped as reason:
        verdict, result = str(reason), "skipped"
    except Failed as reason:
        verdict, result = str(reason), "failed"
    finally:
        left = this.clean_up()
    if left and result != "failed":
        verdict, result = f"{verdict}, but {left} processes were left", "failed"
    outcome = Outcome(number, kind, this.moment, verdict, result, time.monotonic() - started)
    if result == "failed":
        (folder / "verdict.txt").write_text("\n".join([str(outcome), *this.commands]) + "\n", encoding="utf-8")
    else:
        shutil.rmtree(folder)
    return outcome


def how_to_repeat(outcome: Outcome, arena: Arena) -> str:
    """For a person."""
    folder = arena.folder / f"round_{outcome.number:03d}_{outcome.kind}"
    return (
        f"      {folder} is kept (start_*.txt: output; verdict.txt: commands); again: python -m tests.e2e.torture "
        f"--seed {arena.seed} --round {outcome.number} --only {outcome.kind}"
    )


def summary(outcomes: Sequence[Outcome], seconds: float) -> dict[str, object]:
    """Counts, over all and by kind."""
    by_kind = {
        kind: dict(Counter(outcome.result for outcome in outcomes if outcome.kind == kind))
        for kind in KINDS
        if any(outcome.kind == kind for outcome in outcomes)
    }
    total = Counter(outcome.result for outcome in outcomes)
    return {"rounds": len(outcomes), **total, "seconds": round(seconds), "kinds": by_kind}


def main(argv: Sequence[str] | None = None) -> int:
    """Exit status 0 where all rounds held."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=20, help="how many (20)")
    parser.add_argument("--seed", type=int, default=0, help="of kinds and moments (0)")
    parser.add_argument("--only", nargs="+", choices=sorted(KINDS), default=sorted(KINDS), metavar="KIND")
    parser.add_argument("--round", nargs="+", type=int, metavar="N", help="these rounds only, of the kind --only")
    parser.add_argument("--folder", type=Path, help="where runs lie (a temporary one, kept if a round fails)")
    arguments = parser.parse_args(argv)
    if arguments.round and len(arguments.only) != 1:
        parser.error("--round needs the round's kind: --only KIND")
    numbers = arguments.round or list(range(arguments.rounds))
    kinds = deck(arguments.seed, arguments.only, len(numbers))
    folder = arguments.folder or Path(tempfile.mkdtemp(prefix="torture_"))
    started, outcomes = time.monotonic(), []
    with open_arena(folder, arguments.seed) as arena:
        for number, kind in zip(numbers, kinds, strict=True):
            outcomes.append(play(arena, number, kind))
            print(outcomes[-1], flush=True)
            if outcomes[-1].result == "failed":
                print(how_to_repeat(outcomes[-1], arena), flush=True)
    print(json.dumps(summary(outcomes, time.monotonic() - started)))
    if any(outcome.result == "failed" for outcome in outcomes):
        return 1
    shutil.rmtree(folder)
    return 0


if __name__ == "__main__":
    sys.exit(main())
