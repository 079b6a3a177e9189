"""What a corpus is made of: lengths, tokens by kept key and by language, duplicates, ends of documents.

Vectorised over blocks; what grows with the corpus is 30 bytes for each document.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow.compute
import xxhash

from megatron_synE.corpus.blocks import iter_blocks
from megatron_synE.corpus.document_table import DocumentTable, document_table_path
from megatron_synE.corpus.indexed import IndexedCorpus
from megatron_synE.corpus.scripts import LANGUAGES, guess_languages
from megatron_synE.corpus.tokenizers import CorpusTokenizer
from megatron_synE.corpus.verify import check_index

LANGUAGE_KEYS = ("language", "lang")
"""Kept keys that say a document's language; one of them is better than a guess."""
MAX_VALUES = 10_000
"""A key of more values (a url, a date) is not counted value by value."""


@dataclass(frozen=True)
class Share:
    """Documents that have something in common."""

    name: str
    documents: int
    tokens: int


@dataclass(frozen=True)
class LengthBin:
    """Documents of `low` to `high` tokens, both included."""

    low: int
    high: int
    documents: int
    tokens: int


@dataclass(frozen=True)
class Statistics:
    """What was counted. Tokens include those that end documents."""

    num_documents: int
    num_tokens: int
    lengths: list[LengthBin]
    """By powers of two, from the shortest to the longest; empty documents are a bin of their own."""
    by_key: dict[str, list[Share] | None]
    """Kept key → its values by falling tokens; None for a key of more than `MAX_VALUES` values."""
    by_language: list[Share]
    """By falling tokens."""
    language_from: str
    """Where `by_language` comes from."""
    duplicate_documents: int
    """Documents whose tokens are, by a 64-bit hash, those of an earlier one."""
    duplicate_tokens: int
    documents_without_eod: int | None
    """Documents that do not end with the end-of-document token; None where nobody says which that is."""


def corpus_statistics(
    corpus: IndexedCorpus,
    tokenizer: CorpusTokenizer | None,
    on_progress: Callable[[int], None] = lambda num_documents: None,
) -> Statistics:
    """Read a whole corpus and count.

    Args:
        tokenizer: the corpus's, for the guess at languages; None where it is not at hand.
        on_progress: called with the number of documents of each piece.

    Raises:
        ValueError: the corpus or its document table is damaged.
    """
    check_index(corpus)
    lengths = corpus.document_lengths()
    by_key = tokens_by_key(corpus, lengths)
    known = next((key for key in LANGUAGE_KEYS if by_key.get(key)), None)
    decode = tokenizer.decode if tokenizer is not None and known is None else None
    content = read_content(corpus, decode, eod_of(corpus), on_progress)
    copies = later_copies(content.hashes)
    if known is not None:
        by_language, language_from = by_key[known] or [], f"the kept key {known!r}"
    elif decode is not None:
        by_language = shares(LANGUAGES, content.languages.astype(np.int64), lengths)
        language_from = "a guess from the script of its letters"
    else:
        by_language, language_from = [], "not known: neither a kept key 'language' nor the tokenizer is there"
    return Statistics(
        num_documents=corpus.num_documents,
        num_tokens=corpus.num_tokens,
        lengths=length_bins(lengths),
        by_key=by_key,
        by_language=by_language,
        language_from=language_from,
        duplicate_documents=len(copies),
        duplicate_tokens=int(lengths[copies].sum()),
        documents_without_eod=content.without_eod,
    )


def eod_of(corpus: IndexedCorpus) -> int | None:
    """The end-of-document token, as the corpus's sidecar names it."""
    found = (corpus.tokenizer or {}).get("eod_id")
    return None if found is None else int(found)


def length_bins(lengths: npt.NDArray[np.int64]) -> list[LengthBin]:
    """A histogram of [D] document lengths by powers of two."""
    exponents = np.frexp(lengths.astype(np.float64))[1]  # 2^(e-1) <= length < 2^e, and 0 for an empty document
    documents, tokens = np.bincount(exponents), np.bincount(exponents, weights=lengths)
    filled = np.flatnonzero(documents)
    found = range(int(filled[0]), int(filled[-1]) + 1) if len(filled) else range(0)
    return [LengthBin(1 << e - 1 if e else 0, (1 << e) - 1, int(documents[e]), int(tokens[e])) for e in found]


def tokens_by_key(corpus: IndexedCorpus, lengths: npt.NDArray[np.int64]) -> dict[str, list[Share] | None]:
    """Documents and tokens by the values of each kept key; nothing without a document table."""
    if not document_table_path(corpus.prefix).exists():
        return {}
    table = DocumentTable(corpus.prefix, corpus)
    counted: dict[str, dict[str | None, list[int]] | None] = {key: {} for key in table.key_names}
    first = 0
    for batch in table.batches():
        here = lengths[first : first + batch.num_rows]
        first += batch.num_rows
        for key, values in counted.items():
            if values is None:
                continue
            encoded = pyarrow.compute.dictionary_encode(batch.column(key), null_encoding="encode")
            codes = encoded.indices.to_numpy()
            documents, tokens = np.bincount(codes), np.bincount(codes, weights=here)
            for value, count, total in zip(encoded.dictionary.to_pylist(), documents, tokens, strict=True):
                entry = values.setdefault(value, [0, 0])
                entry[0] += int(count)
                entry[1] += int(total)
            if len(values) > MAX_VALUES:
                counted[key] = None
    return {
        key: None if values is None else by_falling_tokens(
            [Share("(none)" if value is None else value, *entry) for value, entry in values.items()]
        )
        for key, values in counted.items()
    }  # fmt: skip


def shares(names: Sequence[str], numbers: npt.NDArray[np.int64], lengths: npt.NDArray[np.int64]) -> list[Share]:
    """Documents and tokens by number, [D] and [D], each of which stands for a name."""
    documents = np.bincount(numbers, minlength=len(names))
    tokens = np.bincount(numbers, weights=lengths, minlength=len(names))
    found = [Share(name, int(d), int(t)) for name, d, t in zip(names, documents, tokens, strict=True) if d]
    return by_falling_tokens(found)


def by_falling_tokens(found: Sequence[Share]) -> list[Share]:
    """Most tokens first, equal ones by name."""
    return sorted(found, key=lambda share: (-share.tokens, share.name))


@dataclass(frozen=True)
class Content:
    """What only the tokens themselves tell."""

    hashes: npt.NDArray[np.uint64]
    """[D]"""
    languages: npt.NDArray[np.int8]
    """[D] indices into `LANGUAGES`; all 0 without a guess."""
    without_eod: int | None


def read_content(
    corpus: IndexedCorpus,
    decode: Callable[[npt.NDArray[np.integer]], str] | None,
    eod_id: int | None,
    on_progress: Callable[[int], None],
) -> Content:
    """Read all tokens once."""
    hashes = np.empty(corpus.num_documents, np.uint64)
    languages = np.zeros(corpus.num_documents, np.int8)
    num_with_eod = 0
    for block in iter_blocks(corpus):
        here = slice(block.first, block.first + block.num_documents)
        hashes[here] = [xxhash.xxh3_64_intdigest(document.data) for document in block.documents()]
        if decode is not None:
            languages[here] = guess_languages(block, decode)
        if eod_id is not None:
            ends = block.starts[1:][np.diff(block.starts) > 0] - 1
            num_with_eod += int((block.tokens[ends] == eod_id).sum())
        on_progress(block.num_documents)
    return Content(hashes, languages, None if eod_id is None else corpus.num_documents - num_with_eod)


def later_copies(hashes: npt.NDArray[np.uint64]) -> npt.NDArray[np.int64]:
    """The documents whose hash an earlier one has."""
    order = np.argsort(hashes, kind="stable")
    ordered = hashes[order]
    return order[1:][ordered[1:] == ordered[:-1]]
