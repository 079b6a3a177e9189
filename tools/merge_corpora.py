"""Join corpora of one tokenizer into one, in the order given: byte-identical to what megatron-core's own builder makes.

Document tables, topics and perplexities come along where all have them; what cannot is said. Nothing is written over
without --overwrite.
"""

import argparse
import sys

from megatron_synE.command_line import ToolParser, run_tool
from megatron_synE.corpus.merge import merge_corpora
from megatron_synE.progress import ProgressBar


def parse_arguments(argv: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = ToolParser(__doc__)
    parser.add_argument("--input", nargs="+", required=True, metavar="PREFIX", help="corpora, without .bin/.idx")
    parser.add_argument("--output-prefix", required=True, help="of the new corpus, without .bin/.idx")
    parser.add_argument("--overwrite", action="store_true", help="replace a corpus that is there (default: refuse)")
    return parser.parse_args(argv)


def run(arguments: argparse.Namespace) -> None:
    """Merge, and say what came along and what did not."""
    with ProgressBar(arguments.output_prefix, None, "documents") as bar:
        merged = merge_corpora(
            arguments.input, arguments.output_prefix, overwrite=arguments.overwrite, on_progress=bar.advance
        )
    sizes = f"{merged.num_documents:,} documents, {merged.num_tokens:,} tokens"
    print(", ".join([f"{arguments.output_prefix}: {sizes} of {len(arguments.input)} corpora", *merged.carried]))
    for reason in merged.left_behind:
        print(f"merge_corpora: not carried over: {reason}", file=sys.stderr)


def main(argv: list[str] | None = None) -> int:
    """Command line; returns the exit status."""
    return run_tool("merge_corpora", lambda: run(parse_arguments(argv)))


if __name__ == "__main__":
    sys.exit(main())
