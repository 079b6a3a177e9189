"""Train the topic classifier from labelled JSON lines and report how well it does on documents held out.

The default backend, a logistic regression on hashed character and word n-grams, is written to ``--output-dir`` and read
by ``tools/annotate_corpus.py topic``. A sequence classifier of transformers (the paper used TinyBERT) is trained with
transformers' own tools and only evaluated here, with ``--evaluate``.

Documents of one page, and near-duplicates of each other, are all trained on or all held out: otherwise the report would
count what was learned by heart. What is a page, ``--page-key`` says; near-duplicates are found by their text (MinHash).
"""

import argparse
import json
import logging
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from megatron_synE.command_line import ToolParser, run_tool
from megatron_synE.corpus.pages import page_groups, split_by_page
from megatron_synE.corpus.texts import read_batches
from megatron_synE.corpus.topic_report import TopicReport, report
from megatron_synE.corpus.topics import (
    RECIPE_TOPICS,
    FeatureSettings,
    LinearClassifier,
    TopicClassifier,
    load_topic_classifier,
)
from megatron_synE.progress import ProgressBar

BLOCK = 256
"""Documents that are classified between two moves of the bar."""


def parse_arguments(argv: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = ToolParser(__doc__)
    parser.add_argument("--input", nargs="+", required=True, help="labelled JSON lines or parquet; files or globs")
    parser.add_argument("--json-key", default="text", help="key of the text")
    parser.add_argument("--topic-key", default="topic", help="key of the label")
    parser.add_argument(
        "--topics", nargs="+", help="the label set in its order; 'from-data': those found; default: the recipe's eleven"
    )
    parser.add_argument("--page-key", help="JSON key that names a document's page, such as url; a #fragment is cut off")
    where = parser.add_mutually_exclusive_group(required=True)
    where.add_argument("--output-dir", type=Path, help="where the classifier goes")
    where.add_argument("--evaluate", type=Path, help="train nothing; report on this classifier with all the input")
    parser.add_argument("--heldout-fraction", type=float, default=0.1, help="part of each topic that is tested with")
    parser.add_argument("--seed", type=int, default=0, help="of the choice of the held-out documents (default: 0)")
    parser.add_argument("--strength", type=float, default=10.0, help="inverse of the L2 penalty")
    parser.add_argument("--num-bits", type=int, default=18, help="2^num_bits features")
    return parser.parse_args(argv)


def read_labelled(
    inputs: Sequence[str], key: str, topic_key: str, page_key: str | None
) -> tuple[list[str], list[str], list[str] | None]:
    """All texts, their labels and pages. ValueError at a bad line: labelled data is small and should be right."""
    keys = list(dict.fromkeys([key, *([page_key] if page_key else [])]))
    columns: dict[str, list[str]] = {name: [] for name in keys}
    labels: list[str] = []
    for batch in read_batches(inputs, keys, topic_key):
        if batch.bad_lines:
            raise ValueError(f"{batch.bad_lines[0].location}: {batch.bad_lines[0].reason}")
        for name in keys:
            columns[name] += batch.texts[name]
        labels += batch.labels or []
    if not labels:
        raise ValueError("--input: no document")
    return columns[key], labels, columns[page_key] if page_key else None


def number_labels(labels: list[str], topics: Sequence[str]) -> npt.NDArray[np.int64]:
    """[documents] places of the labels in ``topics``."""
    places = {name: number for number, name in enumerate(topics)}
    unknown = sorted(set(labels) - set(places))
    if unknown:
        raise ValueError(f"topic {unknown[0]!r} is not in the label set {', '.join(topics)}; see --topics")
    return np.array([places[label] for label in labels])


def evaluate(classifier: TopicClassifier, texts: list[str], labels: list[str]) -> TopicReport:
    """The report on all these documents; a label that the classifier does not know is always predicted wrong."""
    names = list(dict.fromkeys([*classifier.names, *sorted(set(labels))]))
    probabilities = np.zeros((len(texts), len(names)), dtype=np.float32)
    with ProgressBar("classifying", len(texts), "documents") as bar:
        for start in range(0, len(texts), BLOCK):
            block = slice(start, start + BLOCK)
            probabilities[block, : len(classifier.names)] = classifier.probabilities(texts[block])
            bar.at(min(start + BLOCK, len(texts)))
    return report(number_labels(labels, names), probabilities, names)


def train(arguments: argparse.Namespace) -> TopicReport:
    """Train, evaluate on what was held out, and save both."""
    texts, labels, pages = read_labelled(
        arguments.input, arguments.json_key, arguments.topic_key, arguments.page_key
    )
    from_data = arguments.topics == ["from-data"]
    names = sorted(set(labels)) if from_data else list(arguments.topics or RECIPE_TOPICS)
    numbers = number_labels(labels, names)
    settings = FeatureSettings(num_bits=arguments.num_bits)
    groups = page_groups(texts, pages, max_chars=settings.max_chars)
    training, heldout = split_by_page(numbers, groups, arguments.heldout_fraction, arguments.seed)
    if not len(heldout):
        raise ValueError("--heldout-fraction: each topic has one page, or near-duplicates of one; give more documents")
    linear = LinearClassifier.train(
        [texts[i] for i in training], numbers[training], names, settings, strength=arguments.strength
    )
    found = evaluate(linear, [texts[i] for i in heldout], [labels[i] for i in heldout])
    linear.save(arguments.output_dir, found.to_json())
    num_pages, num_heldout = len(np.unique(groups)), len(np.unique(groups[heldout]))
    print(
        f"trained on {len(training)} documents of {num_pages - num_heldout} pages, held out {len(heldout)} of "
        f"{num_heldout} (near-duplicates count as one page)"
    )
    untested = sorted({labels[i] for i in training} - {labels[i] for i in heldout})
    if untested:
        print(f"not tested, as all their documents are of one page: {', '.join(untested)}")
    return found


def main(argv: list[str] | None = None) -> int:
    """Command line; returns the exit status."""
    logging.basicConfig(format="train_topic_classifier: %(message)s", level=logging.WARNING)
    return run_tool("train_topic_classifier", lambda: run(parse_arguments(argv)))


def run(arguments: argparse.Namespace) -> None:
    """Train or only evaluate, and print the report."""
    if arguments.evaluate is not None:
        texts, labels, _ = read_labelled(arguments.input, arguments.json_key, arguments.topic_key, None)
        found = evaluate(load_topic_classifier(arguments.evaluate), texts, labels)
    else:
        found = train(arguments)
    print("\n".join(found.lines()))
    print(json.dumps(found.figures()))


if __name__ == "__main__":
    sys.exit(main())
