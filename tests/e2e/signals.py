"""SIGTERM, SIGINT and SIGUSR1 at random moments of every phase of a run, to a process, to torchrun and to all of them.

    python -m tests.e2e.signals --rounds 60 --seed 1 [--folder DIR]

A proper end: at most one line of ours about it, no traceback of ours, the status that the head of
`pretrain_llama3_synE.py` states, every step that was done saved, no process left; and the same command then goes on to
the losses, records and documents of an undisturbed run, bit for bit. Signals to one process are sent to runs that are
forked (see `tests.e2e.torture`), the others to runs of the real torchrun.
"""

from __future__ import annotations

import argparse
import itertools
import json
import random
import shutil
import signal
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

from tests.e2e.torture import Arena, Outcome, open_arena, play
from tests.helpers.arena import PHASES, Phase, Round
from tests.helpers.disturbances import STOP_SIGNALS, signal_agent, signal_group, signal_rank

TARGETS: dict[str, Callable[[Round, Phase, signal.Signals], str]] = {
    "rank": signal_rank, "agent": signal_agent, "group": signal_group,
}  # fmt: skip


def plan(seed: int, rounds: int) -> list[tuple[Phase, str, signal.Signals]]:
    """Phase, target and signal of each round: all 36 combinations in a random order, and again."""
    shuffle, found = random.Random(seed), []
    combinations = list(itertools.product(PHASES, TARGETS, STOP_SIGNALS))
    while len(found) < rounds:
        found += shuffle.sample(combinations, len(combinations))
    return found[:rounds]


def signalled(arena: Arena, number: int, phase: Phase, target: str, what: signal.Signals) -> Outcome:
    """One round."""
    return play(
        arena, number, f"{target} {phase}", partial(TARGETS[target], phase=phase, number=what)  # type: ignore[call-arg]
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Exit status 0 where all ends were proper."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=60, help="how many (60)")
    parser.add_argument("--seed", type=int, default=0, help="of order and moments (0)")
    parser.add_argument("--folder", type=Path, help="where runs lie (a temporary one, kept if a round fails)")
    arguments = parser.parse_args(argv)
    folder = arguments.folder or Path(tempfile.mkdtemp(prefix="signals_"))
    outcomes = []
    with open_arena(folder, arguments.seed) as arena:
        for number, (phase, target, what) in enumerate(plan(arguments.seed, arguments.rounds)):
            outcomes.append(signalled(arena, number, phase, target, what))
            print(outcomes[-1], flush=True)
    results = Counter(outcome.result for outcome in outcomes)
    print(json.dumps({"rounds": len(outcomes), "proper_ends": results["held"], "others": results["failed"]}))
    if results["failed"]:
        return 1
    shutil.rmtree(folder)
    return 0


if __name__ == "__main__":
    sys.exit(main())
