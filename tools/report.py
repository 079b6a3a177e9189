"""One page of a training run: what was gained and lost, what it read, how it went, and how to do it again.

    report.py --run DIR --output report.html                 a run, by its folder (metrics.jsonl, checkpoints)
    report.py --run DIR --against DIR --output report.html   … beside another run, or the backbone's evaluation
    report.py --compare DIR DIR … --output report.html       several runs in one page

The page is one file that opens without a network, on a phone too. Evaluations of tools/evaluate.py that lie in a run's
folder are in it; others are named with --evaluations.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from megatron_synE.checkpoint import read_state
from megatron_synE.command_line import ToolParser, output_file, run_tool
from megatron_synE.config.evaluation_results import is_finished, read_evaluation
from megatron_synE.reporting.comparison_report import comparison_report
from megatron_synE.reporting.page import render
from megatron_synE.reporting.run_files import read_run
from megatron_synE.reporting.run_report import run_report


def parse_arguments(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = ToolParser(__doc__)
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--run", type=Path, metavar="DIR", help="the run: the folder of its records, or the one above")
    what.add_argument("--compare", type=Path, nargs="+", metavar="DIR", help="two or more runs, side by side")
    parser.add_argument("--against", type=Path, metavar="DIR", help="a run, or a finished evaluation, to compare with")
    parser.add_argument(
        "--evaluations", type=Path, nargs="+", default=[], metavar="DIR",
        help="finished evaluations of the run that lie outside of its folder",
    )  # fmt: skip
    parser.add_argument("--output", type=Path, default=Path("report.html"), metavar="FILE", help="the page to write")
    arguments = parser.parse_args(argv)
    if arguments.compare is not None:
        if len(arguments.compare) < 2:
            parser.error("--compare: needs two runs or more; for one, use --run")
        if arguments.against is not None or arguments.evaluations:
            parser.error("--compare: goes without --against and --evaluations")
    return arguments


def run(arguments: argparse.Namespace) -> None:
    """Write the page. ValueError for every mistake of the user."""
    if arguments.compare is not None:
        report = comparison_report([read_run(folder, read_state) for folder in arguments.compare])
    else:
        found = read_run(arguments.run, read_state, arguments.evaluations)
        against = arguments.against
        if against is not None and is_finished(against):
            report = run_report(found, against=[read_evaluation(against)])
        else:
            report = run_report(found, None if against is None else read_run(against, read_state))
    page = render(report)
    with output_file(arguments.output) as file:
        file.write(page)
    print(f"{arguments.output}: {len(page) / 2**20:.1f} MiB; open it in a browser")


def main(argv: Sequence[str] | None = None) -> int:
    """Exit status 0, or 1 with one message."""
    return run_tool("report", lambda: run(parse_arguments(argv)))


if __name__ == "__main__":
    sys.exit(main())
