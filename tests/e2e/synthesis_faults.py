"""A job against a server of which most answers are faults; its ledger must close.

    python -m tests.e2e.synthesis_faults --snippets 20000 --share 0.1

Each of eight faults meets such a share of the requests, a refusal such a share of the snippets; the server starts
slowly, and now and then it refuses everything for a while.
"""

from __future__ import annotations

import argparse
import logging
import tempfile
import threading
import time
from pathlib import Path

from tests.helpers.fault_server import Behaviour, FaultServer, fault_server
from tests.helpers.synthesis import check_ledger, config, prepare, rows_of, run_toy

FAULTS = ("429", "429 retry-after", "500", "stall", "reset", "cut", "malformed", "content type", "refusal")


def refuse_in_bursts(server: FaultServer, ended: threading.Event, every_seconds: float, for_seconds: float) -> None:
    """Until the event."""
    while not ended.wait(every_seconds):
        server.behaviour.rate = 0.0
        ended.wait(for_seconds)
        server.behaviour.rate = None


def main() -> None:
    """Run and tell."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--snippets", type=int, default=20_000)
    parser.add_argument("--share", type=float, default=0.1)
    parser.add_argument("--window", type=int, default=512)
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    behaviour = Behaviour(dict.fromkeys(FAULTS, arguments.share), start_requests=3)
    with tempfile.TemporaryDirectory() as name, fault_server(behaviour) as server:
        folder, ended = prepare(Path(name) / "job", arguments.snippets, shard_rows=1000), threading.Event()
        bursts = threading.Thread(target=refuse_in_bursts, args=(server, ended, 20.0, 3.0))
        bursts.start()
        began = time.monotonic()
        pace = {"window": arguments.window, "tries": 1000}
        run_toy(config(folder.root, server.url, endpoint={"timeout_seconds": 2.0}, pace=pace))
        seconds = time.monotonic() - began
        ended.set()
        bursts.join()
        outcomes = check_ledger(folder, arguments.snippets)
        num_answers = sum(row["attempts"] for row in rows_of(folder))
        assert num_answers == sum(server.paid.values()), "an answer was lost, or paid twice"
        print(f"{seconds:.0f} s, {sum(server.num_requests.values()):,} requests: {dict(server.num_requests)}")
        print(f"{num_answers:,} answers paid, each once: {max(server.paid.values()) == 1}")
        print(f"{arguments.snippets:,} snippets: {dict(outcomes)}")


if __name__ == "__main__":
    main()
