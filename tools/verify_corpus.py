"""Read corpora from end to end and say what is wrong: index, content against the sidecar's fingerprint, token ids,
annotations, document table. One line for each corpus that is good; for each that is not, one line per fault, and exit
status 1.
"""

import argparse
import sys

from megatron_synE.command_line import ToolParser, run_tool
from megatron_synE.corpus.verify import verify_corpus


def parse_arguments(argv: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = ToolParser(__doc__)
    parser.add_argument("prefix", nargs="+", help="corpora, without .bin/.idx")
    parser.add_argument("--vocab-size", type=int, help="of the model (default: what the sidecar says)")
    return parser.parse_args(argv)


def run(arguments: argparse.Namespace) -> int:
    """Read every corpus and say what was found; status 1 where one is not good."""
    status = 0
    for prefix in arguments.prefix:
        found = verify_corpus(prefix, arguments.vocab_size)
        if not found.problems:
            print(f"{prefix}: good: {found.summary}")
            continue
        status = 1
        for problem in found.problems:
            print(f"verify_corpus: {problem}", file=sys.stderr)
    return status


def main(argv: list[str] | None = None) -> int:
    """Command line; returns the exit status."""
    return run_tool("verify_corpus", lambda: run(parse_arguments(argv)))


if __name__ == "__main__":
    sys.exit(main())
