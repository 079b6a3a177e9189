"""Show what a corpus holds: sizes, tokenizer, document lengths, annotations, and the text of single documents.

tools/verify_corpus.py says whether it is sound.
"""

import argparse
import sys

import numpy as np

from megatron_synE.corpus.annotate import corpus_tokenizer
from megatron_synE.corpus.annotations import NO_SCORE, Annotations
from megatron_synE.corpus.indexed import IndexedCorpus


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


def main(argv: list[str] | None = None) -> int:
    """Command line; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("prefix", nargs="+", help="corpora, without .bin/.idx")
    parser.add_argument("--document", type=int, action="append", default=[], help="print the text of this document")
    parser.add_argument("--tokenizer-model", help="where the corpus's tokenizer lies now, if it moved")
    arguments = parser.parse_args(argv)
    try:
        for prefix in arguments.prefix:
            corpus = IndexedCorpus(prefix)
            print("\n".join([prefix, *describe(corpus), *describe_annotations(corpus)]))
            if arguments.document:
                tokenizer = corpus_tokenizer(prefix, arguments.tokenizer_model)
                for number in arguments.document:
                    print(f"--- document {number}\n{tokenizer.decode(corpus.document(number))}")
    except (ValueError, IndexError, OSError) as error:
        print(f"inspect_corpus: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
