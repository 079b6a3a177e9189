"""Documents that hold pieces of benchmarks, found by the n-grams of words that both have.

The usual measure since GPT-3 (Brown et al., 2020, appendix C): a document is contaminated if it shares a run of 13
words with an example of a benchmark. Case, punctuation and width do not count; a Chinese character is a word. An
example that has fewer words, but not too few, is looked for as a whole.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from megatron_synE.corpus.chunks import BadLine
from megatron_synE.corpus.ngrams import ngram_hashes, word_hashes, words
from megatron_synE.corpus.readers import expand_inputs
from megatron_synE.corpus.records import Record, iter_records
from megatron_synE.progress import ProgressBar

NGRAM_WORDS, MIN_WORDS = 13, 8


class Hit(NamedTuple):
    """What a document shares with benchmarks."""

    place: str
    """``file:line`` of the first example."""
    text: str
    """The words that are shared with it, as they are compared."""
    num_hits: int
    """Runs of words in the document that are in any benchmark."""


@dataclass
class _Table:
    """The n-grams of one length."""

    hashes: npt.NDArray[np.uint64] = field(default_factory=lambda: np.empty(0, np.uint64))
    """[N] sorted."""
    examples: npt.NDArray[np.int64] = field(default_factory=lambda: np.empty(0, np.int64))
    """[N] the first example that each is in."""


class BenchmarkNgrams:
    """All n-grams of some benchmark files.

    Args:
        files: JSON lines, Parquet or plain text (one example); every string in an example counts by itself.
        keys: only these keys of an example; None takes all.
        ngram_words: length of the runs that are compared.
        min_words: an example of fewer words is not looked for: it could be in any text.

    Raises:
        ValueError: a file cannot be read, or there is no example of ``min_words``.
    """

    def __init__(
        self,
        files: Sequence[str | Path],
        *,
        keys: Sequence[str] | None = None,
        ngram_words: int = NGRAM_WORDS,
        min_words: int = MIN_WORDS,
    ) -> None:
        if not 1 <= min_words <= ngram_words:
            raise ValueError(f"n-grams of {ngram_words} words, examples of {min_words} or more: give 1 ≤ min ≤ n-gram")
        self.ngram_words, self.places, self.num_skipped = ngram_words, list[str](), 0
        found: dict[int, list[tuple[npt.NDArray[np.uint64], int]]] = {}
        for place, text in _example_texts(files, keys):
            own = words(text)
            if len(own) < min_words:
                self.num_skipped += 1
                continue
            if not self.places or self.places[-1] != place:
                self.places.append(place)
            length = min(len(own), ngram_words)
            found.setdefault(length, []).append((ngram_hashes(word_hashes(own), length), len(self.places) - 1))
        if not found:
            told = ", ".join(map(str, files))
            raise ValueError(f"{told}: no text of {min_words} words or more to look for; is --benchmark-keys right?")
        self._tables = {length: _table(pieces) for length, pieces in sorted(found.items(), reverse=True)}

    @property
    def num_ngrams(self) -> int:
        """Different ones."""
        return sum(len(table.hashes) for table in self._tables.values())

    def find(self, text: str) -> Hit | None:
        """What a text shares with the benchmarks; None for nothing."""
        own, num_hits = words(text), 0
        own_hashes = word_hashes(own)
        first: tuple[str, str] | None = None
        for length, table in self._tables.items():
            hashes = ngram_hashes(own_hashes, length)
            places = np.minimum(np.searchsorted(table.hashes, hashes), len(table.hashes) - 1)
            hits = np.flatnonzero(table.hashes[places] == hashes)
            num_hits += len(hits)
            if len(hits) and first is None:
                example = self.places[int(table.examples[places[hits[0]]])]
                first = example, " ".join(own[hits[0] : hits[0] + length])
        return Hit(*first, num_hits) if first is not None else None


def _table(pieces: list[tuple[npt.NDArray[np.uint64], int]]) -> _Table:
    hashes = np.concatenate([own for own, _ in pieces])
    examples = np.concatenate([np.full(len(own), example) for own, example in pieces])
    unique, first = np.unique(hashes, return_index=True)
    return _Table(unique, examples[first])


def _example_texts(files: Sequence[str | Path], keys: Sequence[str] | None) -> Iterator[tuple[str, str]]:
    for path in expand_inputs(files):
        for record in iter_records(path):
            content = record.content
            for text in _strings(content if keys is None else [content[key] for key in keys if key in content]):
                yield record.place, text


def _strings(value: Any) -> Iterator[str]:
    """Every string in nested lists and objects."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict | list):
        for inner in value.values() if isinstance(value, dict) else value:
            yield from _strings(inner)


@dataclass
class Decontaminated:
    """What was found in the documents of some files."""

    num_documents: int = 0
    num_removed: int = 0
    num_bad_lines: int = 0
    """Lines without a text under the key: they are removed too, as nobody can say what they hold."""
    removed_by_file: Counter[str] = field(default_factory=Counter)
    """Benchmark file → documents removed because of it first."""

    @property
    def num_kept(self) -> int:
        """Documents handed on."""
        return self.num_documents - self.num_removed


def decontaminate(
    inputs: Sequence[str | Path],
    benchmarks: BenchmarkNgrams,
    *,
    key: str = "text",
    min_hits: int = 1,
    on_kept: Callable[[bytes], object],
    on_removed: Callable[[Record, Hit], object] = lambda record, hit: None,
) -> Decontaminated:
    """Hand on the documents without pieces of the benchmarks, line by line and as they are.

    Args:
        inputs: JSON lines, Parquet or plain text; files, directories or globs.
        key: of the text.
        min_hits: a document that shares fewer runs of words is kept.
        on_kept: called with each line that stays, without its end.
        on_removed: called with each document that does not, and why.

    Raises:
        ValueError: an input cannot be read, or no document has a text under the key.
    """
    found = Decontaminated()

    def count_bad_line(line: BadLine) -> None:
        found.num_bad_lines += 1

    files, done_bytes = expand_inputs(inputs), 0
    with ProgressBar("decontaminating", sum(path.stat().st_size for path in files), "bytes") as bar:
        for path in files:

            def on_progress(place: int, before: int = done_bytes) -> None:
                bar.at(before + place)

            for record in iter_records(path, count_bad_line, on_progress):
                text = record.content.get(key)
                if not isinstance(text, str):
                    found.num_bad_lines += 1
                    continue
                found.num_documents += 1
                hit = benchmarks.find(text)
                if hit is None or hit.num_hits < min_hits:
                    on_kept(record.line)
                else:
                    found.num_removed += 1
                    found.removed_by_file[hit.place.rpartition(":")[0]] += 1
                    on_removed(record, hit)
            done_bytes += path.stat().st_size
    if not found.num_documents:
        raise ValueError(f"no document with a text under {key!r} in {len(files)} input file(s); see --json-key")
    return found
