"""Writing a ``.bin/.idx`` corpus: it grows on disk, in a staging folder, and gets its names when it is complete."""

import hashlib
from collections.abc import Callable, Iterator
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import numpy.typing as npt

from megatron_synE.corpus.indexed import (
    CODE_OF_DTYPE,
    HEADER,
    MAGIC,
    VERSION,
    combined_fingerprint,
    write_json_atomically,
)
from megatron_synE.corpus.sidecar import SIDECAR_FORMAT_VERSION
from megatron_synE.corpus.staging import Staging
from megatron_synE.corpus.watched_file import WatchedFile

PIECE = 1 << 20
"""Entries of the index that are in memory at a time."""

WriteTable = Callable[[Path, str], None]
"""Writes the document table to a path, for a corpus of this fingerprint (``document_table.write_document_table``)."""


class CorpusParts:
    """The growing files of one corpus in a staging folder: tokens, lengths of sequences, sequences per document."""

    def __init__(self, staging: Staging, name: str, dtype: npt.DTypeLike) -> None:
        self.staging, self.name, self.dtype = staging, name, np.dtype(dtype)

    @staticmethod
    def file_names(name: str) -> dict[str, bool]:
        """What ``Staging.open_files`` must have opened for a corpus of this name; the .bin's SHA-256 is wanted."""
        return {f"{name}.bin": True, f"{name}.lengths": False, f"{name}.counts": False}

    def add_documents(
        self,
        tokens: npt.NDArray[Any],
        lengths: npt.NDArray[np.integer],
        sequences_per_document: npt.NDArray[np.integer] | None = None,
    ) -> None:
        """Append documents; see ``IndexedCorpusWriter.add_documents``."""
        if sequences_per_document is None:
            sequences_per_document = np.ones(len(lengths), dtype=np.int32)
        assert int(lengths.sum(dtype=np.int64)) == len(tokens)
        assert int(np.sum(sequences_per_document, dtype=np.int64)) == len(lengths)
        self._file("bin").write(np.asarray(tokens, dtype=self.dtype))
        self._file("lengths").write(np.asarray(lengths, dtype=np.int32))
        self._file("counts").write(np.asarray(sequences_per_document, dtype=np.int32))

    @property
    def num_documents(self) -> int:
        return self._file("counts").num_bytes // 4

    @property
    def num_sequences(self) -> int:
        return self._file("lengths").num_bytes // 4

    @property
    def num_tokens(self) -> int:
        return self._file("bin").num_bytes // self.dtype.itemsize

    def complete(
        self, prefix: str, metadata: dict[str, Any] | None, write_table: WriteTable | None
    ) -> tuple[str, list[tuple[str, Path]], list[Path]]:
        """Write index, table and sidecar into the folder; return (fingerprint, moves, removals) for ``publish``.

        The old ``.idx`` of the prefix goes first and the new one comes last: whenever an ``.idx`` stands under the
        final name, it belongs to the files beside it.
        """
        idx_hash, folder, name = hashlib.sha256(), self.staging.folder, self.name
        with open(folder / f"{name}.idx", "wb") as file:
            for block in self._index_blocks():
                file.write(block)
                idx_hash.update(block)
        bin_hash = self._file("bin").content_hash
        assert bin_hash is not None
        fingerprint = combined_fingerprint(bin_hash.hexdigest(), idx_hash.hexdigest())
        moves = [(f"{name}.{kind}", Path(f"{prefix}.{kind}")) for kind in ("bin", "json", "idx")]
        removed = [Path(f"{prefix}.idx"), Path(f"{prefix}.documents.arrow")]
        if write_table is not None:
            write_table(folder / f"{name}.documents.arrow", fingerprint)
            moves.insert(1, (f"{name}.documents.arrow", Path(f"{prefix}.documents.arrow")))
        sidecar = {
            "format_version": SIDECAR_FORMAT_VERSION,
            "fingerprint": fingerprint,
            "num_documents": self.num_documents,
            "num_sequences": self.num_sequences,
            "num_tokens": self.num_tokens,
            "dtype": self.dtype.name,
            **(metadata or {}),
            "files": {kind: _file_identity(folder / f"{name}.{kind}") for kind in ("bin", "idx")},
        }
        write_json_atomically(folder / f"{name}.json", sidecar)
        return fingerprint, moves, removed

    def _file(self, kind: str) -> Any:
        return self.staging.file(f"{self.name}.{kind}")

    def _index_blocks(self) -> Iterator[bytes]:
        """The ``.idx`` in pieces, so that the index of all sequences never stands in memory at once."""
        yield HEADER.pack(MAGIC, VERSION, CODE_OF_DTYPE[self.dtype], self.num_sequences, self.num_documents + 1)
        for lengths in self._pieces("lengths"):
            yield lengths.tobytes()
        start = 0
        for lengths in self._pieces("lengths"):
            ends = start + np.cumsum(lengths, dtype=np.int64) * self.dtype.itemsize
            yield (ends - lengths.astype(np.int64) * self.dtype.itemsize).tobytes()
            start = int(ends[-1])
        yield np.zeros(1, np.int64).tobytes()
        boundary = 0
        for counts in self._pieces("counts"):
            boundaries = boundary + np.cumsum(counts, dtype=np.int64)
            yield boundaries.tobytes()
            boundary = int(boundaries[-1])

    def _pieces(self, kind: str) -> Iterator[npt.NDArray[np.int32]]:
        with open(self._file(kind).path, "rb") as file:
            while data := file.read(4 * PIECE):
                yield np.frombuffer(data, np.int32)


class IndexedCorpusWriter:
    """Writes one corpus; a context manager that leaves no trace unless it was finalized.

    While it lives it holds the folder ``{prefix}.unfinished``: a second writer of the same prefix is refused, and what
    a killed one left behind is removed by the next. ``finalize`` replaces a corpus of the same prefix.

    Raises:
        ValueError: another process is writing the same prefix.
    """

    def __init__(self, prefix: str | Path, dtype: npt.DTypeLike) -> None:
        self.prefix, self.dtype = str(prefix), np.dtype(dtype)
        if self.dtype not in CODE_OF_DTYPE:
            raise ValueError(f"{prefix}: tokens cannot be stored as {self.dtype}")
        self._staging = Staging(Path(f"{prefix}.unfinished"))
        self._staging.open_files(CorpusParts.file_names("corpus"))
        self._parts, self._open = CorpusParts(self._staging, "corpus", self.dtype), True
        self.num_documents = 0
        self.num_tokens = 0

    def add_documents(
        self,
        tokens: npt.NDArray[Any],
        lengths: npt.NDArray[np.integer],
        sequences_per_document: npt.NDArray[np.integer] | None = None,
    ) -> None:
        """Append documents.

        Args:
            tokens: [sum(lengths)] their tokens end to end, of any integer dtype that fits the corpus's.
            lengths: [sequences] tokens per sequence.
            sequences_per_document: [documents] sequences per document; None where each document is one sequence.
        """
        assert self._open, "the writer is closed"
        self._parts.add_documents(tokens, lengths, sequences_per_document)
        self.num_documents, self.num_tokens = self._parts.num_documents, self._parts.num_tokens

    def finalize(self, metadata: dict[str, Any] | None = None, write_table: WriteTable | None = None) -> str:
        """Put the corpus in place and return its fingerprint.

        Args:
            metadata: further entries of the sidecar, for example ``tokenizer``.
            write_table: writes the document table; without one, that of a corpus which is replaced is removed.

        Raises:
            ValueError: no document was added.
        """
        if not self.num_documents:
            self.abort()
            raise ValueError(f"{self.prefix}: no document to write; the input holds none that is usable")
        fingerprint, moves, removed = self._parts.complete(self.prefix, metadata, write_table)
        self._staging.publish(moves, removed, {})
        self._open = False
        return fingerprint

    def abort(self) -> None:
        """Remove everything that was written; nothing happens to a corpus that was finalized."""
        if self._open:
            self._open = False
            self._staging.release()

    def __enter__(self) -> "IndexedCorpusWriter":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.abort()


def _file_identity(path: Path) -> dict[str, Any]:
    with open(path, "rb") as file:
        return WatchedFile(path, file).identity
