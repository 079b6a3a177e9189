"""From raw text to corpora: read, check, tokenise and write, in bounded memory and in input order.

One process reads chunks ahead in a thread while gigatoken's own threads encode; with several workers, each is a process
that parses and encodes whole chunks, and the main process only cuts the input and writes. At any time about two chunks
per worker are in memory, whatever the size of the input.
"""

import multiprocessing
import os
import signal
import sys
import threading
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Executor, Future, ProcessPoolExecutor, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from megatron_synE.corpus.annotations import write_labels
from megatron_synE.corpus.indexed import IndexedCorpusWriter, token_dtype
from megatron_synE.corpus.readers import BadLine, Chunk, DocumentBatch, iter_chunks
from megatron_synE.corpus.tokenizers import CorpusTokenizer, build_tokenizer

NUM_BAD_LINES_SHOWN = 5


@dataclass(frozen=True)
class PreprocessOptions:
    """What to make of the input."""

    keys: tuple[str, ...] = ("text",)
    """JSON keys; each gives a corpus of its own, and a line must hold them all."""
    label_key: str | None = None
    """JSON key whose value becomes the document's ``topic`` annotation."""
    append_eod: bool = False
    """End each document with the tokenizer's end-of-document token."""
    split_sentences: bool = False
    """Make each sentence a sequence of its own."""
    strict: bool = False
    """Stop at the first bad line instead of counting and leaving it out."""


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
    labels: list[str] | None
    bad_lines: list[BadLine]
    num_lines: int
    num_bytes: int


@dataclass
class Progress:
    """Running totals, and in the end the report."""

    num_bytes: int = 0
    """Uncompressed input read."""
    num_lines: int = 0
    num_documents: int = 0
    num_tokens: int = 0
    """Over all keys."""
    skipped: Counter[str] = field(default_factory=Counter)
    """Bad lines by reason."""
    first_bad_lines: list[BadLine] = field(default_factory=list)

    def add(self, chunk: EncodedChunk) -> None:
        self.num_bytes += chunk.num_bytes
        self.num_lines += chunk.num_lines
        self.num_documents += chunk.num_lines - len(chunk.bad_lines)
        self.num_tokens += sum(len(documents.tokens) for documents in chunk.documents.values())
        self.skipped.update(line.reason for line in chunk.bad_lines)
        self.first_bad_lines += chunk.bad_lines[: NUM_BAD_LINES_SHOWN - len(self.first_bad_lines)]


class ChunkEncoder:
    """Turns a chunk into tokens; the unit of work of a worker."""

    def __init__(self, tokenizer: CorpusTokenizer, options: PreprocessOptions) -> None:
        if options.append_eod and tokenizer.eod_id is None:
            raise ValueError(f"--append-eod: the tokenizer {tokenizer.name} names no end-of-text token")
        self.tokenizer, self.options = tokenizer, options
        self._dtype = np.dtype(token_dtype(tokenizer.vocab_size))
        self._eod = np.full(int(options.append_eod), tokenizer.eod_id or 0, dtype=self._dtype)
        self._split = _sentence_splitter() if options.split_sentences else None

    def encode(self, chunk: Chunk) -> EncodedChunk:
        return self.encode_batch(chunk.parse(self.options.keys, self.options.label_key), chunk.num_bytes)

    def encode_batch(self, batch: DocumentBatch, num_bytes: int) -> EncodedChunk:
        documents = {key: self._encode_texts(texts) for key, texts in batch.texts.items()}
        return EncodedChunk(documents, batch.labels, batch.bad_lines, batch.num_lines, num_bytes)

    def _encode_texts(self, texts: list[str]) -> EncodedDocuments:
        if self._split is None:
            tokens, offsets = self.tokenizer.encode_batch(texts)
            return self._with_eod(tokens, offsets, np.arange(1, len(texts) + 1), None)
        sentences = [self._split(text) for text in texts]
        counts = np.array([len(document) for document in sentences], dtype=np.int32)
        tokens, offsets = self.tokenizer.encode_batch([sentence for document in sentences for sentence in document])
        return self._with_eod(tokens, offsets, np.cumsum(counts), counts)

    def _with_eod(
        self,
        tokens: npt.NDArray[Any],
        offsets: npt.NDArray[np.int64],
        document_ends: npt.NDArray[np.integer],
        counts: npt.NDArray[np.int32] | None,
    ) -> EncodedDocuments:
        """Insert the end-of-document token, if one is wanted, into the last sequence of each document."""
        lengths = np.diff(offsets).astype(np.int32)
        tokens = np.asarray(tokens[: offsets[-1]]).astype(self._dtype)
        if len(self._eod):
            tokens = np.insert(tokens, offsets[document_ends], self._eod[0])
            lengths[document_ends - 1] += 1
        return EncodedDocuments(tokens, lengths, counts)


def preprocess(
    inputs: Iterable[Path],
    output_prefix: str,
    tokenizer: CorpusTokenizer,
    options: PreprocessOptions,
    *,
    num_workers: int = 1,
    on_progress: Callable[[Progress], None] = lambda progress: None,
) -> tuple[dict[str, str], Progress]:
    """Write ``{output_prefix}_{key}_document.bin/.idx`` for every key (``_sentence`` where sentences are split).

    Args:
        inputs: files, in the order in which their documents are stored.
        output_prefix: path and beginning of the name of every output file.
        tokenizer: from ``build_tokenizer``.
        options: what to make of the input.
        num_workers: 1 works in this process, with gigatoken's threads on all cores; more are processes.
        on_progress: called after every chunk.

    Returns:
        the prefix of each key's corpus, and the totals.

    Raises:
        ValueError: no usable document, a damaged file, or (with ``strict``) a bad line; then no output has its name.
    """
    encoder, progress, files = ChunkEncoder(tokenizer, options), Progress(), list(inputs)
    level = "sentence" if options.split_sentences else "document"
    prefixes = {key: f"{output_prefix}_{key}_{level}" for key in options.keys}
    labels = LabelColumn() if options.label_key is not None else None
    with ExitStack() as stack:
        writers = {
            key: stack.enter_context(IndexedCorpusWriter(prefix, token_dtype(tokenizer.vocab_size)))
            for key, prefix in prefixes.items()
        }
        columns = [*options.keys, *([options.label_key] if options.label_key else [])]
        chunks = (chunk for file in files for chunk in iter_chunks(file, columns))
        for chunk in encode_in_order(chunks, encoder, num_workers):
            progress.add(chunk)
            if options.strict and chunk.bad_lines:
                raise ValueError(f"{chunk.bad_lines[0].location}: {chunk.bad_lines[0].reason} (--strict)")
            for key, documents in chunk.documents.items():
                writers[key].add_documents(documents.tokens, documents.lengths, documents.sequences_per_document)
            if labels is not None and chunk.labels is not None:
                labels.extend(chunk.labels)
            on_progress(progress)
        if not progress.num_documents:
            raise ValueError(f"no usable document in {len(files)} input file(s); {describe_skipped(progress)}")
        for key, writer in writers.items():
            fingerprint = writer.finalize(_sidecar(key, files, tokenizer, options, progress))
            if labels is not None:
                annotator = {"type": "input", "key": options.label_key}
                write_labels(prefixes[key], *labels.numbered(), fingerprint, annotator)
    return prefixes, progress


def encode_in_order(chunks: Iterable[Chunk], encoder: ChunkEncoder, num_workers: int) -> Iterator[EncodedChunk]:
    """Encode chunks on ``num_workers`` workers and yield the results in input order."""
    if num_workers == 1:
        keys, label_key = encoder.options.keys, encoder.options.label_key
        # three stages in three threads: one parses, one encodes (with gigatoken's own threads), the caller writes
        with _prompt_threads(), ThreadPoolExecutor(1) as parser, ThreadPoolExecutor(1) as encoding:
            parsed = _map_ahead(parser, lambda chunk: (chunk.parse(keys, label_key), chunk.num_bytes), chunks, ahead=1)
            yield from _map_ahead(encoding, lambda item: encoder.encode_batch(*item), parsed, ahead=2)
        return
    setup = (encoder.tokenizer.type, encoder.tokenizer.name, encoder.tokenizer.backend.name, encoder.options)
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


def _start_worker(tokenizer_type: str, tokenizer_name: str, backend: str, options: PreprocessOptions) -> None:
    global _worker_encoder
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the main process's to handle
    threading.Thread(target=_end_with_parent, daemon=True).start()
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # a worker is one core's share
    tokenizer = build_tokenizer(tokenizer_type, tokenizer_name, fast=backend == "gigatoken")
    _worker_encoder = ChunkEncoder(tokenizer, options)


def _end_with_parent() -> None:
    """Without this, the workers of a main process that is killed would wait for work for ever."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


def _encode_in_worker(chunk: Chunk) -> EncodedChunk:
    assert _worker_encoder is not None
    return _worker_encoder.encode(chunk)


class LabelColumn:
    """Labels per document, held as numbers while the set of labels is still growing."""

    def __init__(self) -> None:
        self._numbers: dict[str, int] = {}
        self._blocks: list[npt.NDArray[np.int16]] = []

    def extend(self, labels: list[str]) -> None:
        numbers = [self._numbers.setdefault(label, len(self._numbers)) for label in labels]
        if len(self._numbers) > np.iinfo(np.int16).max:
            raise ValueError("--topic-key: more than 32,767 different labels; is it the right key?")
        self._blocks.append(np.array(numbers, dtype=np.int16))

    def numbered(self) -> tuple[npt.NDArray[np.int16], list[str]]:
        """Return ([documents] label numbers, names), the names sorted so that the input's order does not matter."""
        names = sorted(self._numbers)
        new_number = np.empty(len(names), dtype=np.int16)
        for number, name in enumerate(names):
            new_number[self._numbers[name]] = number
        return new_number[np.concatenate(self._blocks)], names


def describe_skipped(progress: Progress) -> str:
    """One line per reason, then the first bad lines with file and line number."""
    if not progress.skipped:
        return "no line was skipped"
    lines = [f"skipped {progress.skipped.total()} of {progress.num_lines} lines:"]
    lines += [f"  {count} x {reason}" for reason, count in progress.skipped.most_common()]
    lines += [f"  {line.location}: {line.reason}" for line in progress.first_bad_lines]
    if progress.skipped.total() > len(progress.first_bad_lines):
        lines.append("  ...")
    return "\n".join(lines)


def _sidecar(
    key: str, files: list[Path], tokenizer: CorpusTokenizer, options: PreprocessOptions, progress: Progress
) -> dict[str, Any]:
    return {
        "tokenizer": tokenizer.describe(),
        "source": {
            "inputs": [str(file) for file in files],
            "json_key": key,
            "append_eod": options.append_eod,
            "split_sentences": options.split_sentences,
            "num_lines": progress.num_lines,
            "skipped": dict(progress.skipped),
        },
    }


def _sentence_splitter() -> Callable[[str], list[str]]:
    """nltk's punkt rule without a trained model of abbreviations, which would have to be downloaded."""
    from nltk.tokenize.punkt import PunktSentenceTokenizer

    tokenize = PunktSentenceTokenizer().tokenize
    return lambda text: [sentence for sentence in tokenize(text) if sentence]
