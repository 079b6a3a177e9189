"""From chunks of input to tokens, on one process or several, in input order.

One process reads chunks ahead in a thread while gigatoken's own threads encode; with several workers, each is a process
that parses and encodes whole chunks, and the main process only cuts the input and writes. At any time about two chunks
per worker are in memory, whatever the size of the input.
"""

import multiprocessing
import os
import signal
import sys
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Executor, Future, ProcessPoolExecutor, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import chain
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow

from megatron_synE.corpus.chunks import BadLine, Chunk, DocumentBatch, FilePosition
from megatron_synE.corpus.document_table import table_schema
from megatron_synE.corpus.indexed import token_dtype
from megatron_synE.corpus.sentences import SentenceSplitter
from megatron_synE.corpus.tokenizers import CorpusTokenizer, build_tokenizer


@dataclass(frozen=True)
class PreprocessOptions:
    """What to make of the input."""

    keys: tuple[str, ...] = ("text",)
    """JSON keys; each gives a corpus of its own, and a line must hold them all."""
    label_key: str | None = None
    """JSON key whose value becomes the document's ``topic`` annotation."""
    id_key: str | None = None
    """JSON key of the document's id in the document table."""
    keep_keys: tuple[str, ...] = ()
    """Further JSON keys that the document table keeps."""
    append_eod: bool = False
    """End each document with the tokenizer's end-of-document token."""
    split_sentences: bool = False
    """Make each sentence a sequence of its own."""
    strict: bool = False
    """Stop at the first bad line instead of counting and leaving it out."""
    separator: str | None = None
    """Between the documents of plain text; see ``readers.separator_pattern``."""

    @property
    def kept(self) -> tuple[str, ...]:
        """All keys that go into the document table, the id's first."""
        return (*([self.id_key] if self.id_key is not None else []), *self.keep_keys)

    @property
    def columns(self) -> list[str]:
        """All keys that are read."""
        return list(dict.fromkeys([*self.keys, *([self.label_key] if self.label_key is not None else []), *self.kept]))


@dataclass(frozen=True)
class InputPosition:
    """Where in the inputs the next document begins."""

    input: int = 0
    """Number of the file, counted from 0."""
    position: FilePosition = field(default_factory=FilePosition)


@dataclass(frozen=True)
class InputChunk:
    """A chunk, where it comes from, and where the one behind it begins."""

    input: int
    chunk: Chunk
    next: InputPosition


@dataclass(frozen=True)
class EncodedDocuments:
    """The documents of one chunk in one key."""

    tokens: npt.NDArray[Any]
    """[sum(lengths)] end to end, in the corpus's dtype."""
    lengths: npt.NDArray[np.int32]
    """[sequences]"""
    sequences_per_document: npt.NDArray[np.int32] | None
    """[documents]; None where each document is one sequence."""


@dataclass(frozen=True)
class EncodedChunk:
    """What one chunk of the input became."""

    documents: dict[str, EncodedDocuments]
    origins: pyarrow.RecordBatch
    """Rows of the document table, and the labels as a last column where there are labels."""
    bad_lines: list[BadLine]
    num_lines: int
    num_bytes: int
    """Of the chunk, uncompressed."""
    next: InputPosition
    """Where the next chunk begins."""


class ChunkEncoder:
    """Turns a chunk into tokens; the unit of work of a worker."""

    def __init__(self, tokenizer: CorpusTokenizer, options: PreprocessOptions) -> None:
        if options.append_eod and tokenizer.eod_id is None:
            raise ValueError(f"--append-eod: the tokenizer {tokenizer.name} names no end-of-text token")
        self.tokenizer, self.options = tokenizer, options
        self._schema = origins_schema(options)
        self._dtype = np.dtype(token_dtype(tokenizer.vocab_size))
        self._split = SentenceSplitter() if options.split_sentences else None
        self.sentence_model = self._split.model if self._split is not None else None

    def parse(self, chunk: Chunk) -> DocumentBatch:
        """The first half of the work, in which gigatoken's threads have no part."""
        return chunk.parse(self.options.keys, self.options.label_key, self.options.kept)

    def encode(self, batch: DocumentBatch, source: InputChunk) -> EncodedChunk:
        """The second half."""
        documents = {key: self._encode_texts(texts) for key, texts in batch.columns.items()}
        return EncodedChunk(
            documents,
            self._origins(batch, source.input),
            batch.bad_lines,
            batch.num_lines,
            source.chunk.num_bytes,
            source.next,
        )

    def _origins(self, batch: DocumentBatch, input_number: int) -> pyarrow.RecordBatch:
        num_documents, id_key = len(batch.lines), self.options.id_key
        ids = batch.kept[id_key] if id_key is not None else pyarrow.nulls(num_documents, pyarrow.string())
        columns = [ids, pyarrow.array(np.full(num_documents, input_number, np.int32)), pyarrow.array(batch.lines)]
        columns += [batch.kept[key] for key in self.options.keep_keys]
        if batch.label_column is not None:
            columns.append(batch.label_column.cast(pyarrow.string()))
        return pyarrow.RecordBatch.from_arrays(columns, schema=self._schema)

    def _encode_texts(self, texts: pyarrow.LargeStringArray) -> EncodedDocuments:
        if self._split is None:
            return self._with_eod(*self.tokenizer.encode_batch(texts), np.arange(1, len(texts) + 1), None)
        sentences = [self._split(text) for text in texts.to_pylist()]
        counts = np.array([len(document) for document in sentences], dtype=np.int32)
        flat = pyarrow.array(chain.from_iterable(sentences), pyarrow.large_string())
        return self._with_eod(*self.tokenizer.encode_batch(flat), np.cumsum(counts), counts)

    def _with_eod(
        self,
        tokens: npt.NDArray[Any],
        offsets: npt.NDArray[np.int64],
        document_ends: npt.NDArray[np.integer],
        counts: npt.NDArray[np.int32] | None,
    ) -> EncodedDocuments:
        """Insert the end-of-document token, if one is wanted, into the last sequence of each document."""
        lengths = np.diff(offsets).astype(np.int32)
        tokens = np.asarray(tokens[: offsets[-1]])
        if self.options.append_eod:
            assert self.tokenizer.eod_id is not None
            ends = offsets[document_ends] + np.arange(len(document_ends))
            with_eod = np.empty(len(tokens) + len(ends), dtype=self._dtype)
            is_text = np.ones(len(with_eod), dtype=bool)
            is_text[ends] = False
            with_eod[is_text] = tokens
            with_eod[ends] = self.tokenizer.eod_id
            tokens = with_eod
            lengths[document_ends - 1] += 1
        return EncodedDocuments(tokens.astype(self._dtype, copy=False), lengths, counts)


def origins_schema(options: PreprocessOptions) -> pyarrow.Schema:
    """The columns of ``EncodedChunk.origins``; the column of labels, if any, is the last."""
    schema = table_schema(options.keep_keys)
    return schema.append(pyarrow.field("label", pyarrow.string())) if options.label_key is not None else schema


def encode_in_order(chunks: Iterable[InputChunk], encoder: ChunkEncoder, num_workers: int) -> Iterator[EncodedChunk]:
    """Encode chunks on ``num_workers`` workers and yield the results in input order."""
    if num_workers == 1:
        # three stages in three threads: one parses, one encodes (with gigatoken's own threads), the caller writes
        with _prompt_threads(), ThreadPoolExecutor(1) as parser, ThreadPoolExecutor(1) as encoding:
            parsed = _map_ahead(parser, lambda source: (encoder.parse(source.chunk), source), chunks, ahead=1)
            yield from _map_ahead(encoding, lambda item: encoder.encode(*item), parsed, ahead=2)
        return
    tokenizer = encoder.tokenizer
    setup = (
        tokenizer.type, tokenizer.name, tokenizer.backend.name, tokenizer.special_tokens_in_text, encoder.options,
    )  # fmt: skip
    # spawn: a forked child would inherit gigatoken's thread pool without its threads
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(num_workers, context, initializer=_start_worker, initargs=setup) as workers:
        try:
            yield from _map_ahead(workers, _encode_in_worker, chunks, ahead=2 * num_workers)
        except GeneratorExit:
            workers.shutdown(wait=True, cancel_futures=True)
            raise


@contextmanager
def _prompt_threads() -> Iterator[None]:
    """Let a thread that comes back from gigatoken have the interpreter at once, not after 5 ms of another's parsing."""
    usual = sys.getswitchinterval()
    sys.setswitchinterval(0.0005)
    try:
        yield
    finally:
        sys.setswitchinterval(usual)


def _map_ahead(executor: Executor, function: Callable[..., Any], items: Iterable[Any], ahead: int) -> Iterator[Any]:
    """``executor.map`` in order, but with at most ``ahead`` items under way."""
    pending: deque[Future[Any]] = deque()
    for item in items:
        pending.append(executor.submit(function, item))
        if len(pending) > ahead:
            yield pending.popleft().result()
    while pending:
        yield pending.popleft().result()


_worker_encoder: ChunkEncoder | None = None
"""The encoder of a worker process, which loads its tokenizer once."""


def _start_worker(
    tokenizer_type: str, tokenizer_name: str, backend: str, special_tokens_in_text: bool, options: PreprocessOptions
) -> None:
    global _worker_encoder
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the main process's to handle
    threading.Thread(target=_end_with_parent, daemon=True).start()
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # a worker is one core's share
    tokenizer = build_tokenizer(
        tokenizer_type, tokenizer_name, fast=backend == "gigatoken", special_tokens_in_text=special_tokens_in_text
    )
    _worker_encoder = ChunkEncoder(tokenizer, options)


def _end_with_parent() -> None:
    """Without this, the workers of a main process that is killed would wait for work for ever."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


def _encode_in_worker(source: InputChunk) -> EncodedChunk:
    assert _worker_encoder is not None
    return _worker_encoder.encode(_worker_encoder.parse(source.chunk), source)
