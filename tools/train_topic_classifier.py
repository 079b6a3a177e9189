"""Train the topic classifier from labelled JSON lines and report how well it does on documents held out.

The default backend, a logistic regression on hashed character and word n-grams, is written to ``--output-dir`` and read
by ``tools/annotate_corpus.py topic``. A sequence classifier of transformers (the paper used TinyBERT) is trained with
transformers' own tools and only evaluated here, with ``--evaluate``.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from megatron_synE.corpus.readers import expand_inputs, iter_chunks
from megatron_synE.corpus.topics import (
    RECIPE_TOPICS,
    FeatureSettings,
    LinearClassifier,
    TopicClassifier,
    load_topic_classifier,
)


def parse_arguments(argv: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--input", nargs="+", required=True, help="labelled JSON lines or parquet; files or globs")
    parser.add_argument("--json-key", default="text")
    parser.add_argument("--topic-key", default="topic")
    parser.add_argument(
        "--topics", nargs="+", help="the label set in its order; 'from-data': those found; default: the recipe's eleven"
    )
    where = parser.add_mutually_exclusive_group(required=True)
    where.add_argument("--output-dir", type=Path, help="where the classifier goes")
    where.add_argument("--evaluate", type=Path, help="train nothing; report on this classifier with all the input")
    parser.add_argument("--heldout-fraction", type=float, default=0.1)
    parser.add_argument("--seed", type=int, default=0, help="of the choice of the held-out documents")
    parser.add_argument("--strength", type=float, default=10.0, help="inverse of the L2 penalty")
    parser.add_argument("--num-bits", type=int, default=18, help="2^num_bits features")
    return parser.parse_args(argv)


def read_labelled(inputs: Sequence[str], key: str, topic_key: str) -> tuple[list[str], list[str]]:
    """All texts and their labels. Raises ValueError at a bad line: labelled data is small and should be right."""
    texts: list[str] = []
    labels: list[str] = []
    for path in expand_inputs(inputs):
        for chunk in iter_chunks(path, [key, topic_key]):
            batch = chunk.parse([key], topic_key)
            if batch.bad_lines:
                raise ValueError(f"{batch.bad_lines[0].location}: {batch.bad_lines[0].reason}")
            texts += batch.texts[key]
            labels += batch.labels or []
    if not texts:
        raise ValueError("--input: no document")
    return texts, labels


def number_labels(labels: list[str], topics: Sequence[str]) -> npt.NDArray[np.int64]:
    """[documents] places of the labels in ``topics``."""
    places = {name: number for number, name in enumerate(topics)}
    unknown = sorted(set(labels) - set(places))
    if unknown:
        raise ValueError(f"topic {unknown[0]!r} is not in the label set {', '.join(topics)}; see --topics")
    return np.array([places[label] for label in labels])


def split(labels: npt.NDArray[np.int64], fraction: float, seed: int) -> tuple[npt.NDArray[Any], npt.NDArray[Any]]:
    """Training and held-out document numbers; of each topic the same fraction, rounded up, is held out."""
    if not 0 < fraction < 1:
        raise ValueError(f"--heldout-fraction {fraction}: must be between 0 and 1")
    rng, train, heldout = np.random.default_rng(seed), [], []
    for label in np.unique(labels):
        documents = rng.permutation(np.flatnonzero(labels == label))
        count = int(np.ceil(fraction * len(documents)))
        heldout.append(documents[:count])
        train.append(documents[count:])
    return np.sort(np.concatenate(train)), np.sort(np.concatenate(heldout))


def evaluate(
    classifier: TopicClassifier, texts: list[str], labels: npt.NDArray[np.int64], names: Sequence[str]
) -> dict[str, Any]:
    """Accuracy, macro-F1 over the topics that occur, and the confusion table [true, predicted]."""
    predicted = number_labels([classifier.names[number] for number in classifier.predict(texts)], names)
    confusion = np.zeros((len(names), len(names)), dtype=np.int64)
    np.add.at(confusion, (labels, predicted), 1)
    hits, true, guessed = np.diag(confusion), confusion.sum(axis=1), confusion.sum(axis=0)
    occurs = (true + guessed) > 0
    f1 = 2 * hits[occurs] / (true + guessed)[occurs]
    return {
        "documents": len(texts),
        "accuracy": float(hits.sum() / len(texts)),
        "macro_f1": float(f1.mean()),
        "names": list(names),
        "confusion": confusion.tolist(),
    }


def show(report: dict[str, Any]) -> None:
    """Print a report; the table leaves out topics that never occur."""
    table = np.array(report["confusion"])
    kept = np.flatnonzero(table.sum(axis=0) + table.sum(axis=1))
    print(f"{report['documents']} documents: accuracy {report['accuracy']:.4f}, macro-F1 {report['macro_f1']:.4f}")
    print("confusion (rows: true, columns: predicted)")
    for number, row in enumerate(kept):
        print(f"{number:4d} {report['names'][row]:<40s}" + "".join(f"{table[row, column]:6d}" for column in kept))


def main(argv: list[str] | None = None) -> int:
    """Command line; returns the exit status."""
    arguments = parse_arguments(argv)
    try:
        texts, labels = read_labelled(arguments.input, arguments.json_key, arguments.topic_key)
        if arguments.evaluate is not None:
            classifier = load_topic_classifier(arguments.evaluate)
            names = list(dict.fromkeys([*classifier.names, *sorted(set(labels))]))
            show(evaluate(classifier, texts, number_labels(labels, names), names))
            return 0
        from_data = arguments.topics == ["from-data"]
        names = sorted(set(labels)) if from_data else list(arguments.topics or RECIPE_TOPICS)
        numbers = number_labels(labels, names)
        train, heldout = split(numbers, arguments.heldout_fraction, arguments.seed)
        settings = FeatureSettings(num_bits=arguments.num_bits)
        linear = LinearClassifier.train(
            [texts[i] for i in train], numbers[train], names, settings, strength=arguments.strength
        )
        report = evaluate(linear, [texts[i] for i in heldout], numbers[heldout], names)
        linear.save(arguments.output_dir, report)
    except (ValueError, OSError) as error:
        print(f"train_topic_classifier: {error}", file=sys.stderr)
        return 1
    print(f"trained on {len(train)} documents, held out {len(heldout)}")
    show(report)
    print(json.dumps({key: report[key] for key in ("documents", "accuracy", "macro_f1")}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
