"""Leave out the documents that hold pieces of benchmarks: runs of words that both have.

    decontaminate.py --input 'web/*.jsonl.zst' --benchmark mmlu.jsonl gsm8k.parquet --output web_clean.jsonl.zst

Works on any text before it is tokenised. Lines that stay are written as they were read; Parquet and plain text become
JSON lines. A benchmark is JSON lines, Parquet or plain text, and every string of an example is looked for.
"""

import argparse
import json
import sys
from contextlib import ExitStack

from megatron_synE.command_line import ToolParser, output_file, run_tool
from megatron_synE.corpus.decontaminate import MIN_WORDS, NGRAM_WORDS, BenchmarkNgrams, Hit, decontaminate
from megatron_synE.corpus.export import check_suffix, compressed
from megatron_synE.corpus.records import Record


def parse_arguments(argv: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = ToolParser(__doc__)
    parser.add_argument("--input", nargs="+", required=True, help="documents: files, directories or globs")
    parser.add_argument("--json-key", default="text", help="key of the text")
    parser.add_argument("--benchmark", nargs="+", required=True, help="what must not be in them: files or globs")
    parser.add_argument("--benchmark-keys", nargs="+", help="look only for these keys of an example (default: all)")
    parser.add_argument("--output", required=True, metavar="FILE", help=".jsonl, .jsonl.gz or .jsonl.zst")
    parser.add_argument("--removed", metavar="FILE", help="write what is left out, and why, as JSON lines")
    parser.add_argument("--ngram-words", type=int, default=NGRAM_WORDS, help="length of a run")
    parser.add_argument("--min-words", type=int, default=MIN_WORDS, help="shorter examples are not looked for")
    parser.add_argument("--min-hits", type=int, default=1, help="runs that a document must share to be left out")
    parser.add_argument("--overwrite", action="store_true", help="replace files that are there (default: refuse)")
    return parser.parse_args(argv)


def run(arguments: argparse.Namespace) -> None:
    """Read, write and report."""
    names = [arguments.output, *([arguments.removed] if arguments.removed else [])]
    for name in names:
        check_suffix(name)
    benchmarks = BenchmarkNgrams(
        arguments.benchmark,
        keys=arguments.benchmark_keys,
        ngram_words=arguments.ngram_words,
        min_words=arguments.min_words,
    )
    with ExitStack() as stack:
        files = [stack.enter_context(output_file(name, overwrite=arguments.overwrite)) for name in names]
        kept, *removed = [
            stack.enter_context(compressed(file, name)) for file, name in zip(files, names, strict=True)
        ]

        def on_removed(record: Record, hit: Hit) -> None:
            told = {"place": record.place, "benchmark": hit.place, "shared": hit.text, "num_hits": hit.num_hits}
            for file in removed:
                file.write(json.dumps({**told, "record": record.line.decode()}, ensure_ascii=False).encode() + b"\n")

        found = decontaminate(
            arguments.input,
            benchmarks,
            key=arguments.json_key,
            min_hits=arguments.min_hits,
            on_kept=lambda line: kept.write(line + b"\n"),
            on_removed=on_removed,
        )
    print(f"{arguments.output}: {found.num_kept:,} of {found.num_documents:,} documents")
    for file, count in found.removed_by_file.most_common():
        print(f"  {count:,} left out for {file}")
    for count, what in (
        (found.num_bad_lines, "input lines without a text: left out"),
        (benchmarks.num_skipped, "benchmark texts with too few words: not looked for (see --min-words)"),
    ):
        if count:
            print(f"  {count:,} {what}", file=sys.stderr)


def main(argv: list[str] | None = None) -> int:
    """Command line; returns the exit status."""
    arguments = parse_arguments(argv)
    return run_tool("decontaminate", lambda: run(arguments))


if __name__ == "__main__":
    sys.exit(main())
