"""Tokenise raw text into a Megatron corpus: ``{output-prefix}_{key}_document.bin/.idx`` for every JSON key.

Input is JSON lines or plain text (as they are, .gz or .zst) or parquet; several files, directories or globs, each in
natural order (part-2 before part-10), or - for standard input. A bad line (malformed JSON, missing key, not UTF-8,
empty document) is left out, counted and reported. Beside each corpus lies a table that says from which file and line
every document came (.documents.arrow). A killed command is repeated as it was, and goes on where it stopped.
"""

import argparse
import logging
import signal
import sys
import time
from concurrent.futures.process import BrokenProcessPool

from megatron_synE.command_line import ToolParser, run_tool
from megatron_synE.corpus.preprocess import PreprocessOptions, preprocess
from megatron_synE.corpus.progress import TokenisingBar, describe_skipped
from megatron_synE.corpus.readers import BLANK_LINE, WHOLE_FILE, expand_inputs
from megatron_synE.corpus.tokenizers import TOKENIZER_TYPES, build_tokenizer


def build_parser() -> ToolParser:
    """The command line."""
    parser = ToolParser(__doc__)
    parser.add_argument("--input", nargs="+", required=True, help="files, directories, globs, or - for standard input")
    parser.add_argument("--output-prefix", required=True, help="path and beginning of the output's names")
    parser.add_argument("--json-keys", nargs="+", default=["text"], help="one corpus is made of each")
    parser.add_argument("--id-key", help="JSON key of the document's id in the document table")
    parser.add_argument(
        "--keep-keys", nargs="+", default=[], help="JSON keys that the document table keeps: url, source, date ..."
    )
    parser.add_argument("--topic-key", help="JSON key of a label that is stored as the document's topic annotation")
    parser.add_argument("--tokenizer-type", choices=TOKENIZER_TYPES, default="auto", help="auto looks at the files")
    parser.add_argument("--tokenizer-model", required=True, help="directory, tokenizer.json or .model, or hub name")
    parser.add_argument("--append-eod", action="store_true", help="end each document with the end-of-text token")
    parser.add_argument(
        "--parse-special-tokens",
        action="store_true",
        help="characters that spell a special token become it; by default they are ordinary text",
    )
    parser.add_argument(
        "--separator",
        help=f"between the documents of plain text: {WHOLE_FILE} (default; a file is one document), {BLANK_LINE}, or "
        r"characters, with \n for a new line; with it, standard input is plain text, else JSON lines",
    )
    parser.add_argument(
        "--split-sentences",
        action="store_true",
        help="each sentence becomes a sequence ({key}_sentence): Chinese by its punctuation, else nltk's punkt, with "
        "its English model where nltk finds it (punkt_tab), else untrained",
    )
    parser.add_argument(
        "--workers",
        type=int,
        default=1,
        help="1: one process, in which gigatoken's threads use all cores (RAYON_NUM_THREADS limits them); "
        "more: so many processes on a core each, for machines with many cores",
    )
    parser.add_argument("--overwrite", action="store_true", help="replace a corpus of the same name")
    parser.add_argument("--strict", action="store_true", help="a bad line is an error")
    parser.add_argument(
        "--log-interval",
        type=int,
        help="print a line whenever so many more documents are done (default: a live line on a terminal, else a line "
        "now and then)",
    )
    return parser


def parse_arguments(argv: list[str] | None = None) -> argparse.Namespace:
    """What was given, after checks that need no file."""
    parser = build_parser()
    arguments = parser.parse_args(argv)
    for name in ("workers", "log_interval"):
        if getattr(arguments, name) is not None and getattr(arguments, name) < 1:
            parser.error(f"--{name.replace('_', '-')} must be at least 1")
    if len(set(arguments.json_keys)) != len(arguments.json_keys):
        parser.error("--json-keys: a key is named twice")
    return arguments


def main(argv: list[str] | None = None) -> int:
    """Run and return the exit status: 0, or 1 after one message about what is wrong."""
    return run_tool("preprocess_data", lambda: tokenise(parse_arguments(argv)))


def tokenise(arguments: argparse.Namespace) -> int:
    """The work, and what is said of it; returns the exit status."""
    logging.basicConfig(format="preprocess_data: %(message)s", level=logging.WARNING)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that what cannot be gone on with is removed
    options = PreprocessOptions(
        keys=tuple(arguments.json_keys),
        label_key=arguments.topic_key,
        id_key=arguments.id_key,
        keep_keys=tuple(arguments.keep_keys),
        append_eod=arguments.append_eod,
        split_sentences=arguments.split_sentences,
        strict=arguments.strict,
        separator=arguments.separator,
    )
    start = time.monotonic()
    files = expand_inputs(arguments.input)
    tokenizer = build_tokenizer(
        arguments.tokenizer_type, arguments.tokenizer_model, special_tokens_in_text=arguments.parse_special_tokens
    )
    if not options.append_eod:
        print(
            "preprocess_data: documents get no end-of-text token (--append-eod gives it): a model trained on them does "
            "not learn where a text ends",
            file=sys.stderr,
        )
    try:
        with TokenisingBar(arguments.log_interval) as bar:
            prefixes, progress = preprocess(
                files,
                arguments.output_prefix,
                tokenizer,
                options,
                num_workers=arguments.workers,
                overwrite=arguments.overwrite,
                on_progress=bar.show,
            )
    except BrokenProcessPool:
        print(
            "preprocess_data: a worker process died (out of memory?); the same command with fewer --workers goes on "
            "from here",
            file=sys.stderr,
        )
        return 1
    except KeyboardInterrupt:
        print("preprocess_data: interrupted; the same command goes on from the last mark", file=sys.stderr)
        return 128 + signal.SIGINT
    if progress.skipped:
        print(describe_skipped(progress), file=sys.stderr)
    seconds = time.monotonic() - start
    print(
        f"{progress.num_documents:,} documents, {progress.num_tokens:,} tokens, "
        f"{progress.num_bytes / 1e6:.1f} MB in {seconds:.1f} s ({tokenizer.backend.name})"
    )
    for prefix in prefixes.values():
        print(f"{prefix}.bin {prefix}.idx")
    return 0


if __name__ == "__main__":
    sys.exit(main())
