"""Show what a corpus holds: sizes, tokenizer, document lengths, annotations, and the text of single documents.

    inspect_corpus.py PREFIX                                      at once, whatever its size
    inspect_corpus.py PREFIX --document 17                        one document: where it came from, and its text
    inspect_corpus.py PREFIX --statistics --plot corpus.png       reads it all

tools/verify_corpus.py says whether it is sound.
"""

import argparse
import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from megatron_synE.command_line import ToolParser, output_file, run_tool
from megatron_synE.corpus.annotate import corpus_tokenizer
from megatron_synE.corpus.annotations import NO_SCORE, Annotations
from megatron_synE.corpus.document_table import DocumentTable, document_table_path
from megatron_synE.corpus.indexed import IndexedCorpus
from megatron_synE.corpus.statistics import Statistics, corpus_statistics
from megatron_synE.corpus.verify import check_index
from megatron_synE.progress import ProgressBar
from megatron_synE.reporting.figures import check_suffix, save_figure
from megatron_synE.reporting.statistics import statistics_figure, statistics_text


def describe(corpus: IndexedCorpus) -> list[str]:
    """Sizes, tokenizer and the distribution of document lengths."""
    lengths = corpus.document_lengths()
    quantiles = [int(value) for value in np.quantile(lengths, [0, 0.1, 0.5, 0.9, 1])] if len(lengths) else []
    tokenizer = corpus.tokenizer or {}
    name, kind, vocab_size = (tokenizer.get(field) for field in ("name", "type", "vocab_size"))
    return [
        f"documents    {corpus.num_documents:,} in {corpus.num_sequences:,} sequences",
        f"tokens       {corpus.num_tokens:,} as {corpus.dtype}",
        f"length       min/10%/median/90%/max: {' / '.join(f'{value:,}' for value in quantiles)} tokens",
        f"fingerprint  {corpus.fingerprint}",
        f"tokenizer    {name} ({kind}, {vocab_size})" if tokenizer else "tokenizer    not recorded",
    ]


def describe_annotations(corpus: IndexedCorpus) -> list[str]:
    """Documents per topic, and the distribution of the perplexity."""
    annotations, lines = Annotations(corpus.prefix, corpus), []
    if annotations.has("topic"):
        numbers = annotations.get("topic")
        for number, name in enumerate(annotations.topic_names):
            lines.append(f"topic        {name}: {int((numbers == number).sum()):,} documents")
    if annotations.has("perplexity"):
        values = annotations.get("perplexity")
        scored = values[values != NO_SCORE]
        if len(scored):
            quantiles = " / ".join(f"{value:.2f}" for value in np.quantile(scored, [0, 0.1, 0.5, 0.9, 1]))
            lines.append(f"perplexity   min/10%/median/90%/max: {quantiles}")
        lines.append(f"perplexity   {len(values) - len(scored):,} documents without a score")
    return lines


def parse_arguments(argv: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = ToolParser(__doc__)
    parser.add_argument("prefix", nargs="+", help="corpora, without .bin/.idx")
    parser.add_argument("--document", type=int, action="append", default=[], help="print the text of this document")
    parser.add_argument("--tokenizer-model", help="where the corpus's tokenizer lies now, if it moved")
    parser.add_argument(
        "--statistics",
        action="store_true",
        help="read it all: lengths, tokens by kept key and language, exact duplicates, documents without EOD",
    )
    parser.add_argument("--plot", metavar="FILE", help="draw the statistics of one corpus (.png, .pdf or .svg)")
    parser.add_argument("--json", action="store_true", help="print JSON: sizes, and the statistics if asked for")
    arguments = parser.parse_args(argv)
    if arguments.plot is not None and len(arguments.prefix) > 1:
        parser.error("--plot draws one corpus at a time")
    return arguments


def count(corpus: IndexedCorpus, tokenizer_model: str | None) -> Statistics:
    """The statistics, with a guess at languages where the tokenizer is at hand."""
    tokenizer = None
    try:
        tokenizer = corpus_tokenizer(corpus.prefix, tokenizer_model)
    except ValueError as error:
        print(f"inspect_corpus: no guess at languages: {error}", file=sys.stderr)
    with ProgressBar(corpus.prefix, corpus.num_documents, "documents") as bar:
        return corpus_statistics(corpus, tokenizer, bar.advance)


def as_json(corpus: IndexedCorpus, statistics: Statistics | None) -> dict[str, Any]:
    """Sizes and statistics of one corpus."""
    found: dict[str, Any] = {
        "prefix": corpus.prefix,
        "num_documents": corpus.num_documents,
        "num_sequences": corpus.num_sequences,
        "num_tokens": corpus.num_tokens,
        "dtype": corpus.dtype.name,
        "fingerprint": corpus.fingerprint,
        "tokenizer": corpus.tokenizer,
    }
    return found if statistics is None else {**found, "statistics": asdict(statistics)}


def show_document(corpus: IndexedCorpus, number: int, tokenizer_model: str | None) -> None:
    """Where a document came from, and its text."""
    if not 0 <= number < corpus.num_documents:
        raise ValueError(f"--document {number}: {corpus.prefix} has documents 0 to {corpus.num_documents - 1}")
    told = [f"document {number}"]
    if document_table_path(corpus.prefix).exists():
        row = DocumentTable(corpus.prefix, corpus).row(number)
        told += [row.id] if row.id is not None else []
        told += [f"{key} {value}" for key, value in row.keys.items() if value is not None]
        told.append(f"{row.file}:{row.line}")
    text = corpus_tokenizer(corpus.prefix, tokenizer_model).decode(corpus.document(number))
    print(f"--- {', '.join(told)}\n{text}")


def run(arguments: argparse.Namespace) -> None:
    """Print what was asked for."""
    if arguments.plot is not None:
        check_suffix(arguments.plot)
    found = []
    for prefix in arguments.prefix:
        corpus = IndexedCorpus(prefix)
        check_index(corpus)
        wanted = arguments.statistics or arguments.plot is not None
        statistics = count(corpus, arguments.tokenizer_model) if wanted else None
        found.append(as_json(corpus, statistics))
        if not arguments.json:
            print("\n".join([prefix, *describe(corpus), *describe_annotations(corpus)]))
            if statistics is not None:
                print("\n".join(statistics_text(statistics)))
            for number in arguments.document:
                show_document(corpus, number, arguments.tokenizer_model)
        if statistics is not None and arguments.plot is not None:
            figure = statistics_figure(statistics, Path(prefix).name)
            with output_file(arguments.plot) as file:
                save_figure(figure, file, arguments.plot)
    if arguments.json:
        print(json.dumps(found, indent=1, ensure_ascii=False))


def main(argv: list[str] | None = None) -> int:
    """Command line; returns the exit status."""
    return run_tool("inspect_corpus", lambda: run(parse_arguments(argv)))


if __name__ == "__main__":
    sys.exit(main())
