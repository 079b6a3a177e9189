"""Write a corpus back as JSON lines: the text, and from its document table id, kept keys, input file and line.

    export_corpus.py PREFIX --output corpus.jsonl.zst            everything (.jsonl, .jsonl.gz or .jsonl.zst)
    export_corpus.py PREFIX --documents 100:110 | jq .           ten documents, to standard output

Whether each text, tokenised again, gives the tokens that it came from is looked at and said.
"""

import argparse
import sys

from megatron_synE.command_line import ToolParser, output_file, run_tool
from megatron_synE.corpus.annotate import corpus_tokenizer
from megatron_synE.corpus.export import DocumentExporter, Exported, check_suffix, compressed
from megatron_synE.corpus.indexed import IndexedCorpus
from megatron_synE.progress import ProgressBar


def parse_arguments(argv: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = ToolParser(__doc__)
    parser.add_argument("prefix", help="corpus, without .bin/.idx")
    parser.add_argument("--output", default="-", metavar="FILE", help="default: -, standard output")
    parser.add_argument("--documents", metavar="FIRST:END", help="only these, counted from 0 (default: all)")
    parser.add_argument("--annotations", action="store_true", help="add each document's topic and perplexity")
    parser.add_argument("--tokenizer-model", help="where the corpus's tokenizer lies now, if it moved")
    parser.add_argument("--overwrite", action="store_true", help="replace a file that is there (default: refuse)")
    return parser.parse_args(argv)


def chosen(text: str | None, num_documents: int) -> range:
    """`FIRST:END` as a range; either may be left out."""
    first, colon, end = (text or ":").partition(":")
    if not colon or not all(part.isdigit() or not part for part in (first, end)):
        raise ValueError(f"--documents {text}: is not FIRST:END, for instance 100:110")
    found = range(int(first or 0), int(end or num_documents))
    if not 0 <= found.start < found.stop <= num_documents:
        raise ValueError(f"--documents {text}: the corpus has documents 0:{num_documents}")
    return found


def export(arguments: argparse.Namespace) -> Exported:
    """Write the lines where they are wanted."""
    if arguments.output != "-":
        check_suffix(arguments.output)
    corpus = IndexedCorpus(arguments.prefix)
    documents = chosen(arguments.documents, corpus.num_documents)
    tokenizer = corpus_tokenizer(arguments.prefix, arguments.tokenizer_model)
    exporter = DocumentExporter(corpus, tokenizer, annotations=arguments.annotations)
    with ProgressBar(arguments.prefix, len(documents), "documents") as bar:
        if arguments.output == "-":
            return exporter.write(sys.stdout.buffer, documents, bar.advance)
        name = arguments.output
        with output_file(name, overwrite=arguments.overwrite) as file, compressed(file, name) as out:
            return exporter.write(out, documents, bar.advance)


def run(arguments: argparse.Namespace) -> None:
    """Export, and say how many documents do not come back as they are."""
    exported = export(arguments)
    if arguments.output != "-":
        print(f"{arguments.output}: {exported.num_documents:,} documents")
    if exported.num_changed:
        print(
            f"export_corpus: {exported.num_changed:,} of {exported.num_documents:,} documents, first document "
            f"{exported.first_changed}, are tokenised differently from their text (special tokens within, sentences "
            "split, or another program's tokens)",
            file=sys.stderr,
        )


def main(argv: list[str] | None = None) -> int:
    """Command line; returns the exit status."""
    return run_tool("export_corpus", lambda: run(parse_arguments(argv)))


if __name__ == "__main__":
    sys.exit(main())
