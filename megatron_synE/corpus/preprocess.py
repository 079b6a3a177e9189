"""From raw text to corpora: read, check, tokenise and write, in bounded memory and in input order.

The work grows in ``{output_prefix}.unfinished`` and gets a mark every ``MARK_BYTES``: a process that was killed is
followed by one that goes on from the last mark, and the files are those of an uninterrupted run.
"""

import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow
import pyarrow.ipc

from megatron_synE import __version__
from megatron_synE.corpus.annotations import write_labels
from megatron_synE.corpus.chunks import FilePosition
from megatron_synE.corpus.document_table import table_schema, write_document_table
from megatron_synE.corpus.encoding import (
    ChunkEncoder,
    EncodedChunk,
    InputChunk,
    InputPosition,
    PreprocessOptions,
    encode_in_order,
    origins_schema,
)
from megatron_synE.corpus.indexed import corpus_exists, token_dtype
from megatron_synE.corpus.indexed_writer import CorpusParts
from megatron_synE.corpus.progress import Progress, describe_skipped
from megatron_synE.corpus.readers import STANDARD_INPUT, file_format, iter_chunks
from megatron_synE.corpus.staging import Staging
from megatron_synE.corpus.tokenizers import CorpusTokenizer

MARK_BYTES = 64 << 20
MARK_SECONDS = 20.0
"""A mark is made when so much was written since the last one, or so much time went by."""
ORIGINS = "origins"
"""The growing file of the document table's rows, as Arrow messages."""


def preprocess(
    inputs: Iterable[Path],
    output_prefix: str,
    tokenizer: CorpusTokenizer,
    options: PreprocessOptions,
    *,
    num_workers: int = 1,
    overwrite: bool = False,
    on_progress: Callable[[Progress], None] = lambda progress: None,
) -> tuple[dict[str, str], Progress]:
    """Write ``{output_prefix}_{key}_document.bin/.idx`` for every key (``_sentence`` where sentences are split).

    Beside each lie its sidecar, its document table, and with a label key its ``topic`` annotation. Work that an equal
    call left unfinished is gone on with, unless standard input is among the inputs.

    Args:
        inputs: files, in the order in which their documents are stored; ``-`` is standard input.
        output_prefix: path and beginning of the name of every output file.
        tokenizer: from ``build_tokenizer``.
        options: what to make of the input.
        num_workers: 1 works in this process, with gigatoken's threads on all cores; more are processes.
        overwrite: whether complete corpora of these names may be replaced.
        on_progress: called at the start and after every chunk.

    Returns:
        the prefix of each key's corpus, and the totals.

    Raises:
        ValueError: a corpus is there already, no usable document, a damaged file, (with ``strict``) a bad line, other
            work in the staging folder, or an input that changed; then no output has its name.
    """
    files, encoder = list(inputs), ChunkEncoder(tokenizer, options)
    _check_inputs(files, options)
    level = "sentence" if options.split_sentences else "document"
    prefixes = {key: f"{output_prefix}_{key}_{level}" for key in options.keys}
    job = None if STANDARD_INPUT in files else _job(files, encoder)
    with Staging(Path(f"{output_prefix}.unfinished"), job) as staging:
        if (result := staging.interrupted_publication()) is not None:
            return prefixes, Progress.from_json(result)
        existing = [prefix for prefix in prefixes.values() if corpus_exists(prefix)]
        if existing and not overwrite:
            raise ValueError(f"{existing[0]}.idx: there is a corpus already; --overwrite replaces it")
        work = _StagedWork(staging, files, encoder)
        on_progress(work.progress)
        for chunk in encode_in_order(work.remaining_chunks(), encoder, num_workers):
            if options.strict and chunk.bad_lines:
                raise ValueError(f"{chunk.bad_lines[0].location}: {chunk.bad_lines[0].reason} (--strict)")
            work.add(chunk)
            on_progress(work.progress)
        if not work.progress.num_documents:
            raise ValueError(f"no usable document in {len(files)} input(s); {describe_skipped(work.progress)}")
        work.publish(prefixes)
    return prefixes, work.progress


class _StagedWork:
    """The growing corpora of all keys, their common origins, and how far the inputs have been read."""

    def __init__(self, staging: Staging, files: list[Path], encoder: ChunkEncoder) -> None:
        self.staging, self.files, self.encoder, self.options = staging, files, encoder, encoder.options
        self._resumable = STANDARD_INPUT not in files
        self._identities = [_identity(file) for file in files]
        self._sizes = [num_bytes for num_bytes, _ in self._identities]
        dtype = token_dtype(encoder.tokenizer.vocab_size)
        names = {key: f"key{number}" for number, key in enumerate(self.options.keys)}
        growing = {ORIGINS: False}
        for name in names.values():
            growing |= CorpusParts.file_names(name)
        staging.open_files(growing)
        self._parts = {key: CorpusParts(staging, name, dtype) for key, name in names.items()}
        self._schema = origins_schema(self.options)
        self._labels = LabelColumn()
        self.position, self.progress = InputPosition(), Progress()
        if staging.state is not None:
            self.position = InputPosition(staging.state["input"], FilePosition(**staging.state["position"]))
            self.progress = Progress.from_json(staging.state["progress"])
            self._add_labels(self._origins())
        self.progress.total_bytes_on_disk = sum(self._sizes) if self._resumable else None
        self._marked_bytes, self._marked_seconds = staging.num_bytes, time.monotonic()

    def remaining_chunks(self) -> Iterator[InputChunk]:
        """What has not been read yet, cut into chunks."""
        start = self.position
        for number, file in enumerate(self.files):
            if number < start.input:
                continue
            chunks = iter_chunks(
                file,
                self.options.columns,
                start=start.position if number == start.input else None,
                separator=self.options.separator,
            )
            chunk = next(chunks, None)
            while chunk is not None:
                following = next(chunks, None)
                ends = InputPosition(number, chunk.end) if following is not None else InputPosition(number + 1)
                yield InputChunk(number, chunk, ends)
                chunk = following

    def add(self, chunk: EncodedChunk) -> None:
        """Append what became of a chunk, and make it safe from time to time."""
        for key, documents in chunk.documents.items():
            self._parts[key].add_documents(documents.tokens, documents.lengths, documents.sequences_per_document)
        if chunk.origins.num_rows:
            self.staging.file(ORIGINS).write(chunk.origins.serialize())
            self._add_labels([chunk.origins])
        self.position = chunk.next
        bytes_on_disk = sum(self._sizes[: chunk.next.input]) + chunk.next.position.bytes_on_disk
        self.progress.add(chunk, bytes_on_disk)
        grown_bytes = self.staging.num_bytes - self._marked_bytes
        if grown_bytes >= MARK_BYTES or time.monotonic() - self._marked_seconds >= MARK_SECONDS:
            self._mark()

    def publish(self, prefixes: dict[str, str]) -> None:
        """Complete the corpora and give them their names, all of them one after the other.

        Raises:
            ValueError: an input is not what it was at the beginning.
        """
        for file, identity in zip(self.files, self._identities, strict=True):
            if _identity(file) != identity:
                raise ValueError(f"{file}: changed while it was being read; start over with what it is now")
        self._mark()
        moves: list[tuple[str, Path]] = []
        removed: list[Path] = []
        write_table = partial(
            write_document_table,
            schema=table_schema(self.options.keep_keys),
            inputs=[str(file) for file in self.files],
        )
        for key, parts in self._parts.items():
            fingerprint, renamed, replaced = parts.complete(
                prefixes[key],
                self._metadata(key),
                lambda path, fingerprint: write_table(path, self._table_rows(), fingerprint=fingerprint),
            )
            moves += renamed[:-1]
            if self.options.label_key is not None:
                annotator = {"type": "input", "key": self.options.label_key}
                name = parts.name
                write_labels(self.staging.folder / name, *self._labels.numbered(), fingerprint, annotator)
                moves += [(f"{name}.topic.{kind}", Path(f"{prefixes[key]}.topic.{kind}")) for kind in ("npy", "json")]
            moves += renamed[-1:]
            removed += replaced
        self.staging.publish(moves, removed, self.progress.to_json())

    def _mark(self) -> None:
        if self._resumable:
            position = asdict(self.position.position)
            self.staging.mark({"input": self.position.input, "position": position, "progress": self.progress.to_json()})
        self._marked_bytes, self._marked_seconds = self.staging.num_bytes, time.monotonic()

    def _origins(self) -> Iterator[pyarrow.RecordBatch]:
        """The rows of the document table that were written so far, and the labels."""
        with pyarrow.OSFile(str(self.staging.file(ORIGINS).path)) as file:
            while file.tell() < file.size():
                yield pyarrow.ipc.read_record_batch(pyarrow.ipc.read_message(file), self._schema)

    def _table_rows(self) -> Iterator[pyarrow.RecordBatch]:
        return (batch.select(table_schema(self.options.keep_keys).names) for batch in self._origins())

    def _add_labels(self, batches: Iterable[pyarrow.RecordBatch]) -> None:
        if self.options.label_key is not None:
            for batch in batches:
                self._labels.extend(batch.column(len(self._schema) - 1).to_pylist())

    def _metadata(self, key: str) -> dict[str, Any]:
        """What the sidecar says of the corpus's making."""
        return {
            "tokenizer": self.encoder.tokenizer.describe(),
            "source": {
                "inputs": [str(file) for file in self.files],
                "json_key": key,
                "id_key": self.options.id_key,
                "append_eod": self.options.append_eod,
                "split_sentences": self.options.split_sentences,
                "sentence_model": self.encoder.sentence_model,
                "special_tokens_in_text": self.encoder.tokenizer.special_tokens_in_text,
                "num_lines": self.progress.num_lines,
                "skipped": dict(self.progress.skipped),
            },
        }


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


def _check_inputs(files: list[Path], options: PreprocessOptions) -> None:
    """Refuse options that these inputs cannot have, before anything is read."""
    texts = [file for file in files if _is_plain_text(file, options)]
    if texts and (len(options.keys) > 1 or options.label_key is not None or options.kept):
        raise ValueError(f"--input {texts[0]}: plain text has no keys; --json-keys with several, --topic-key, --id-key "
                         "and --keep-keys are for JSON lines and Parquet")  # fmt: skip
    if options.separator is not None and not texts:
        raise ValueError("--separator is for plain text (.txt, or standard input); no input is")


def _is_plain_text(file: Path, options: PreprocessOptions) -> bool:
    if file == STANDARD_INPUT:
        return options.separator is not None
    found = file_format(file)
    return found is not None and found.content == "text"


def _identity(file: Path) -> tuple[int, int]:
    """(size in bytes, time of change in nanoseconds) of an input; zeros for standard input."""
    if file == STANDARD_INPUT:
        return 0, 0
    status = file.stat()
    return status.st_size, status.st_mtime_ns


def _job(files: list[Path], encoder: ChunkEncoder) -> dict[str, Any]:
    """What determines every byte of the output; ``strict`` only whether there will be one."""
    tokenizer, options = encoder.tokenizer, asdict(replace(encoder.options, strict=False))
    return {
        "version": __version__,
        "options": options,
        "tokenizer": {**tokenizer.describe(), "special_tokens_in_text": tokenizer.special_tokens_in_text},
        "sentence_model": encoder.sentence_model,
        "inputs": [str(file) for file in files],
        "sizes_and_times": {str(file): "{} bytes of time {}".format(*_identity(file)) for file in files},
    }
