"""Tokenise raw text into a Megatron corpus: ``{output-prefix}_{key}_document.bin/.idx`` for every JSON key.

Input is JSON lines (plain, .gz or .zst) or parquet; several files, directories or globs, each in natural order (part-2
before part-10). A bad line (malformed JSON, missing key, not UTF-8, empty document) is left out, counted and reported.
Characters that spell a special token are ordinary text.
"""

import argparse
import logging
import signal
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager

from megatron_synE.corpus.preprocess import PreprocessOptions, Progress, describe_skipped, preprocess
from megatron_synE.corpus.readers import expand_inputs
from megatron_synE.corpus.tokenizers import TOKENIZER_TYPES, build_tokenizer


def parse_arguments(argv: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--input", nargs="+", required=True, help="files, directories or globs")
    parser.add_argument("--output-prefix", required=True, help="path and beginning of the output's names")
    parser.add_argument("--json-keys", nargs="+", default=["text"], help="one corpus is made of each (default: text)")
    parser.add_argument("--tokenizer-type", choices=TOKENIZER_TYPES, default="auto")
    parser.add_argument("--tokenizer-model", required=True, help="directory, tokenizer.json or .model, or hub name")
    parser.add_argument("--append-eod", action="store_true", help="end each document with the end-of-text token")
    parser.add_argument(
        "--workers",
        type=int,
        default=1,
        help="1 (default): one process, in which gigatoken's threads use all cores (RAYON_NUM_THREADS limits them); "
        "more: so many processes on a core each, for machines with many cores",
    )
    parser.add_argument(
        "--split-sentences",
        action="store_true",
        help="each sentence becomes a sequence ({key}_sentence); nltk's punkt rule for Latin script, untrained",
    )
    parser.add_argument("--topic-key", help="JSON key of a label that is stored as the document's topic annotation")
    parser.add_argument("--strict", action="store_true", help="a bad line is an error")
    parser.add_argument("--log-interval", type=int, help="print a line whenever so many more documents are done")
    arguments = parser.parse_args(argv)
    for name in ("workers", "log_interval"):
        if getattr(arguments, name) is not None and getattr(arguments, name) < 1:
            parser.error(f"--{name.replace('_', '-')} must be at least 1")
    if len(set(arguments.json_keys)) != len(arguments.json_keys):
        parser.error("--json-keys: a key is named twice")
    return arguments


@contextmanager
def progress_reporter(log_interval: int | None) -> Iterator[Callable[[Progress], None]]:
    """A live line on a terminal, a printed line every ``log_interval`` documents if asked for, else silence."""
    from rich.console import Console

    console, start, printed = Console(stderr=True), time.monotonic(), 0

    def line(progress: Progress) -> str:
        rate = progress.num_bytes / 1e6 / max(time.monotonic() - start, 1e-9)
        return f"{progress.num_documents:,} documents, {progress.num_tokens:,} tokens, {rate:.1f} MB/s"

    if log_interval is None and console.is_terminal:
        with console.status("reading") as status:
            yield lambda progress: status.update(line(progress))
        return

    def report(progress: Progress) -> None:
        nonlocal printed
        if log_interval is not None and progress.num_documents // log_interval > printed:
            printed = progress.num_documents // log_interval
            print(line(progress), file=sys.stderr, flush=True)

    yield report


def main(argv: list[str] | None = None) -> int:
    """Run and return the exit status: 0, or 1 after one message about what is wrong."""
    arguments = parse_arguments(argv)
    logging.basicConfig(format="preprocess_data: %(message)s", level=logging.WARNING)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that what is half-written is removed
    options = PreprocessOptions(
        keys=tuple(arguments.json_keys),
        label_key=arguments.topic_key,
        append_eod=arguments.append_eod,
        split_sentences=arguments.split_sentences,
        strict=arguments.strict,
    )
    start = time.monotonic()
    try:
        files = expand_inputs(arguments.input)
        tokenizer = build_tokenizer(arguments.tokenizer_type, arguments.tokenizer_model)
        with progress_reporter(arguments.log_interval) as on_progress:
            prefixes, progress = preprocess(
                files,
                arguments.output_prefix,
                tokenizer,
                options,
                num_workers=arguments.workers,
                on_progress=on_progress,
            )
    except (ValueError, OSError) as error:
        print(f"preprocess_data: {error}", file=sys.stderr)
        return 1
    except BrokenProcessPool:
        print("preprocess_data: a worker process died (out of memory?); use fewer --workers", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("preprocess_data: interrupted; nothing was written", file=sys.stderr)
        return 130
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
