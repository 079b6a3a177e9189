"""Everything of a corpus, read and checked: index, content, token ids, annotations, document table."""

from dataclasses import dataclass

import numpy as np

from megatron_synE.corpus.annotations import Annotations, annotation_names
from megatron_synE.corpus.document_table import REMEDY, DocumentTable, document_table_path
from megatron_synE.corpus.indexed import IndexedCorpus, content_fingerprint
from megatron_synE.corpus.sidecar import read_sidecar

PIECE = 1 << 22
"""Entries of the index that are looked at at a time."""


@dataclass(frozen=True)
class Verification:
    """What was found."""

    summary: str
    """Sizes and what else is worth knowing; empty where the corpus cannot be opened."""
    problems: list[str]
    """Each names its file."""


def verify_corpus(prefix: str, vocab_size: int | None = None) -> Verification:
    """Read a whole corpus, in pieces.

    Args:
        prefix: of the corpus.
        vocab_size: of the model or tokenizer; None takes what the sidecar says.
    """
    try:
        corpus, sidecar = IndexedCorpus(prefix), read_sidecar(prefix)
        problems = index_problems(corpus)
        if not problems:
            recorded = ((sidecar or {}).get("tokenizer") or {}).get("vocab_size")
            tokens = TokenRange(corpus, vocab_size or recorded)
            fingerprint = content_fingerprint(prefix, tokens.add)
            problems = tokens.problems() + sidecar_problems(corpus, sidecar, fingerprint)
            corpus.check_unchanged()
    except ValueError as error:
        return Verification("", [str(error)])
    except OSError as error:
        return Verification("", [f"{error.filename or prefix}: cannot be read ({error.strerror})"])
    names, wrong = annotation_problems(corpus)
    problems += wrong
    if document_table_path(prefix).exists():
        names, problems = [*names, "document table"], problems + table_problems(corpus)
    summary = f"{corpus.num_documents:,} documents, {corpus.num_tokens:,} tokens"
    if sidecar is None:
        summary += ", no sidecar to compare with"
    elif not problems and tokens.vocab_size is None:
        summary += f", highest token {tokens.highest}, no vocabulary to compare with"
    return Verification(", ".join([summary, *names]), problems)


def check_index(corpus: IndexedCorpus) -> None:
    """ValueError where documents and sequences are not end to end: for who reads a corpus by its index."""
    if problems := index_problems(corpus):
        raise ValueError("\n".join(problems))


def index_problems(corpus: IndexedCorpus) -> list[str]:
    """Lengths below 0, offsets that do not follow from them, boundaries that descend."""
    problems, expected = [], 0
    for first in range(0, corpus.num_sequences, PIECE):
        lengths = corpus.sequence_lengths[first : first + PIECE].astype(np.int64)
        starts = expected + np.concatenate([[0], np.cumsum(lengths) * corpus.dtype.itemsize])
        bad = (lengths < 0) | (corpus.sequence_offsets[first : first + PIECE] != starts[:-1])
        if bad.any():
            at = first + int(np.argmax(bad))
            problems.append(
                f"{corpus.idx_path}: sequence {at} has length {corpus.sequence_lengths[at]} and offset "
                f"{corpus.sequence_offsets[at]}, where {starts[at - first]} follows from those before it"
            )
            break
        expected = int(starts[-1])
    for first in range(0, corpus.num_documents, PIECE):
        steps = np.diff(corpus.document_boundaries[first : first + PIECE + 1])
        if (steps < 0).any():
            problems.append(f"{corpus.idx_path}: document {first + int(np.argmax(steps < 0))} ends before it begins")
            break
    return problems


class TokenRange:
    """Collects, block by block of the .bin, the token ids that a vocabulary does not have."""

    def __init__(self, corpus: IndexedCorpus, vocab_size: int | None) -> None:
        self.corpus, self.vocab_size = corpus, vocab_size
        self.highest = -1
        self._num_read, self._num_bad = 0, 0
        self._first_bad: tuple[int, int] | None = None

    def add(self, block: bytes) -> None:
        """The next tokens, as they lie in the file."""
        tokens = np.frombuffer(block, self.corpus.dtype)
        lowest, highest = int(tokens.min()), int(tokens.max())
        self.highest = max(self.highest, highest)
        limit = np.iinfo(np.int64).max if self.vocab_size is None else self.vocab_size
        if lowest < 0 or highest >= limit:
            bad = np.flatnonzero((tokens < 0) | (tokens >= limit))
            self._num_bad += len(bad)
            if self._first_bad is None:
                self._first_bad = self._num_read + int(bad[0]), int(tokens[bad[0]])
        self._num_read += len(tokens)

    def problems(self) -> list[str]:
        """The first token that is not in the vocabulary, with its document, and how many there are."""
        if self._first_bad is None:
            return []
        place, token = self._first_bad
        offset = place * self.corpus.dtype.itemsize
        sequence = int(np.searchsorted(self.corpus.sequence_offsets, offset, side="right")) - 1
        document = int(np.searchsorted(self.corpus.document_boundaries, sequence, side="right")) - 1
        return [
            f"{self.corpus.bin_path}: document {document} holds token {token}; the vocabulary has "
            f"{'no negative ones' if self.vocab_size is None else self.vocab_size} ({self._num_bad:,} such tokens)"
        ]


def sidecar_problems(corpus: IndexedCorpus, sidecar: dict[str, object] | None, fingerprint: str) -> list[str]:
    """In what the sidecar and the files differ."""
    if sidecar is None:
        return []
    found = {
        "fingerprint": fingerprint,
        "num_documents": corpus.num_documents,
        "num_sequences": corpus.num_sequences,
        "num_tokens": corpus.num_tokens,
        "dtype": corpus.dtype.name,
    }
    return [
        f"{corpus.prefix}.json: {name} is {sidecar[name]}, but the files have {value}"
        for name, value in found.items()
        if sidecar.get(name) not in (None, value)
    ]


def annotation_problems(corpus: IndexedCorpus) -> tuple[list[str], list[str]]:
    """The names of the annotations that are good, and what is wrong with the others."""
    annotations, good, problems = Annotations(corpus.prefix, corpus), [], []
    for name in annotation_names(corpus.prefix):
        try:
            annotations.get(name)
            good.append(name)
        except ValueError as error:
            problems.append(str(error))
    return good, problems


def table_problems(corpus: IndexedCorpus) -> list[str]:
    """What is wrong with the document table: of other content, damaged, or with a place in no input."""
    try:
        table, first = DocumentTable(corpus.prefix, corpus), 0
        for batch in table.batches():
            files, lines = (batch.column(name).to_numpy() for name in ("file", "line"))
            bad = (files < 0) | (files >= len(table.inputs)) | (lines < 1)
            if bad.any():
                at = int(np.argmax(bad))
                return [
                    f"{table.path}: document {first + at} is said to be line {lines[at]} of input {files[at]}, "
                    f"of {len(table.inputs)}; {REMEDY}"
                ]
            first += batch.num_rows
    except ValueError as error:
        return [str(error)]
    return []
