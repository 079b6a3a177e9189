"""The ``.bin/.idx`` corpus as Megatron writes it, memory-mapped; ``indexed_writer`` writes it.

``.idx`` (little-endian, unpadded): ``MMIDIDX\\0\\0``, u64 version 1, u8 dtype code, u64 S sequences, u64 D + 1 for
D documents, i32[S] sequence lengths in tokens, i64[S] byte offsets into ``.bin``, i64[D + 1] document boundaries in
sequences. ``.bin`` holds the tokens and nothing else. Both are byte-identical to the output of megatron-core 0.16's
``IndexedDatasetBuilder``. Beside them, ``{prefix}.json`` (the sidecar) records the fingerprint and the tokenizer.
"""

import contextlib
import hashlib
import json
import logging
import os
import struct
from collections.abc import Callable
from functools import cached_property
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt

from megatron_synE.corpus.sidecar import SIDECAR_FORMAT_VERSION, read_sidecar
from megatron_synE.corpus.watched_file import WatchedFile

logger = logging.getLogger(__name__)

MAGIC = b"MMIDIDX\x00\x00"
VERSION = 1
HEADER = struct.Struct("<9sQBQQ")
DTYPE_OF_CODE: dict[int, type[np.integer]] = {
    1: np.uint8,
    2: np.int8,
    3: np.int16,
    4: np.int32,
    5: np.int64,
    8: np.uint16,
}
CODE_OF_DTYPE = {np.dtype(dtype): code for code, dtype in DTYPE_OF_CODE.items()}
UINT16_VOCAB_LIMIT = 65_500
"""Below this vocabulary size Megatron stores tokens as uint16, from it on as int32."""

HASH_BLOCK_BYTES = 16 << 20


def token_dtype(vocab_size: int) -> type[np.integer]:
    """The dtype in which Megatron stores tokens of a vocabulary with ``vocab_size`` entries."""
    return np.uint16 if vocab_size < UINT16_VOCAB_LIMIT else np.int32


def corpus_exists(prefix: str | Path) -> bool:
    """Whether a complete corpus lies under ``prefix``; the ``.idx`` is what a writer puts in place last."""
    return Path(f"{prefix}.idx").is_file() and Path(f"{prefix}.bin").is_file()


class IndexedCorpus:
    """A corpus on disk, memory-mapped; opening it reads no more than two megabytes of each file, to know it again.

    Args:
        updates_sidecar: whether a sidecar that is right is brought up to date; see `metadata`.

    Raises:
        ValueError: a file is missing, truncated, or not of this format; the message names the file.
    """

    dtype: np.dtype[Any]
    """dtype of a token."""
    sequence_lengths: npt.NDArray[np.int32]
    """[S] tokens per sequence, the end-of-document token included."""
    sequence_offsets: npt.NDArray[np.int64]
    """[S] where each sequence starts in the ``.bin``, in bytes."""
    document_boundaries: npt.NDArray[np.int64]
    """[D + 1] document d is made of the sequences [boundaries[d], boundaries[d + 1])."""
    tokens: npt.NDArray[Any]
    """[num_tokens] the whole ``.bin``."""
    mapped_files: dict[Path, np.memmap[Any, Any]]
    """The mappings, by file."""

    def __init__(self, prefix: str | Path, *, updates_sidecar: bool = True) -> None:
        self.prefix, self._updates_sidecar = str(prefix), updates_sidecar
        self.bin_path, self.idx_path = Path(f"{prefix}.bin"), Path(f"{prefix}.idx")
        for path in (self.idx_path, self.bin_path):
            if not path.is_file():
                raise ValueError(f"{path}: no such file; a corpus is a .bin and an .idx (see tools/preprocess_data.py)")
        with open(self.idx_path, "rb") as idx, open(self.bin_path, "rb") as bin_:
            self._idx_file, self._bin_file = WatchedFile(self.idx_path, idx), WatchedFile(self.bin_path, bin_)
            num_sequences, num_boundaries = self._read_header(idx)
            index = np.memmap(idx, dtype=np.uint8, mode="r")
            self.mapped_files = {self.idx_path: index}
            self.tokens = np.empty(0, self.dtype)
            if size := self._bin_file.num_bytes // self.dtype.itemsize:
                self.tokens = self.mapped_files[self.bin_path] = np.memmap(bin_, self.dtype, mode="r", shape=size)

        def array(dtype: type[np.integer], count: int, offset: int) -> npt.NDArray[Any]:
            return np.frombuffer(index, dtype=dtype, count=count, offset=offset)

        start = HEADER.size
        self.sequence_lengths = array(np.int32, num_sequences, start)
        self.sequence_offsets = array(np.int64, num_sequences, start + 4 * num_sequences)
        self.document_boundaries = array(np.int64, num_boundaries, start + 12 * num_sequences)
        self._check_bin()

    def _read_header(self, file: BinaryIO) -> tuple[int, int]:
        size, raw = self._idx_file.num_bytes, file.read(HEADER.size)
        if len(raw) < HEADER.size or not raw.startswith(MAGIC):
            raise ValueError(f"{self.idx_path}: not a Megatron index (wrong magic or shorter than its header)")
        _, version, code, num_sequences, num_boundaries = HEADER.unpack(raw)
        if version != VERSION:
            raise ValueError(f"{self.idx_path}: index version {version} is not supported, only {VERSION}")
        if code not in DTYPE_OF_CODE:
            raise ValueError(f"{self.idx_path}: unknown token dtype code {code}")
        expected = HEADER.size + 12 * num_sequences + 8 * num_boundaries
        if size != expected or num_boundaries < 1:
            raise ValueError(f"{self.idx_path}: damaged: has {size} bytes where its header asks for {expected}")
        self.dtype = np.dtype(DTYPE_OF_CODE[code])
        return num_sequences, num_boundaries

    def _check_bin(self) -> None:
        if self.document_boundaries[0] != 0 or self.document_boundaries[-1] != len(self.sequence_lengths):
            raise ValueError(f"{self.idx_path}: document boundaries do not cover its sequences; the index is damaged")
        expected = 0
        if len(self.sequence_lengths):
            expected = int(self.sequence_offsets[-1]) + int(self.sequence_lengths[-1]) * self.dtype.itemsize
        size = self._bin_file.num_bytes
        if size != expected:
            fault = "truncated" if size < expected else "too long"
            raise ValueError(f"{self.bin_path}: {fault}: {size} bytes where {self.idx_path.name} asks for {expected}")

    @property
    def num_documents(self) -> int:
        return len(self.document_boundaries) - 1

    @property
    def num_sequences(self) -> int:
        return len(self.sequence_lengths)

    @property
    def num_tokens(self) -> int:
        return len(self.tokens)

    def document(self, index: int) -> npt.NDArray[Any]:
        """The tokens of document ``index`` as a view of the ``.bin``, [length] of ``dtype``."""
        if not 0 <= index < self.num_documents:
            raise IndexError(f"{self.prefix}: document {index} of {self.num_documents}")
        first, last = self.document_boundaries[index], self.document_boundaries[index + 1]
        if first == last:
            return self.tokens[:0]
        start = int(self.sequence_offsets[first]) // self.dtype.itemsize
        stop = int(self.sequence_offsets[last - 1]) // self.dtype.itemsize + int(self.sequence_lengths[last - 1])
        return self.tokens[start:stop]

    def document_lengths(self) -> npt.NDArray[np.int64]:
        """[D] tokens per document."""
        ends = np.concatenate([[0], np.cumsum(self.sequence_lengths, dtype=np.int64)])
        return np.diff(ends[self.document_boundaries])

    @cached_property
    def metadata(self) -> dict[str, Any]:
        """The sidecar's content, or only the fingerprint where there is none.

        The fingerprint is taken from the sidecar while sizes, modification times and sampled content are as recorded;
        otherwise the files are hashed, and a sidecar that turns out to be right (the corpus was copied) is brought up
        to date.

        Raises:
            ValueError: the sidecar is of other content.
        """
        recorded = read_sidecar(self.prefix)
        found = {"bin": self._bin_file.identity, "idx": self._idx_file.identity}
        files = recorded["files"] if recorded is not None else None
        if recorded is not None and files == found:
            return recorded
        # Sidecars of earlier versions have no samples.
        if recorded is None or files != {kind: _without(identity, "sample") for kind, identity in found.items()}:
            fingerprint = content_fingerprint(self.prefix)
            self.check_unchanged()
            if recorded is None or recorded["fingerprint"] != fingerprint:
                if recorded is not None:
                    raise ValueError(
                        f"{self.prefix}.json: describes other content than {self.prefix}.bin and .idx hold: they were "
                        "damaged, or written anew by another program; restore them, or delete the .json to use them so"
                    )
                return {"format_version": SIDECAR_FORMAT_VERSION, "fingerprint": fingerprint}
        recorded["files"] = found
        if self._updates_sidecar:
            with contextlib.suppress(OSError):  # a read-only corpus is hashed at each opening, and works
                write_json_atomically(Path(f"{self.prefix}.json"), recorded)
        return recorded

    def check_unchanged(self) -> None:
        """Raise ValueError, with the file's name, when the files are not those that were opened; two ``stat`` else."""
        self._bin_file.check_unchanged()
        self._idx_file.check_unchanged()

    @property
    def fingerprint(self) -> str:
        """Hash of the content of ``.bin`` and ``.idx``, as hexadecimal digits."""
        return str(self.metadata["fingerprint"])

    @property
    def tokenizer(self) -> dict[str, Any] | None:
        """What the sidecar says of the tokenizer: type, name, vocab_size, eod_id, fingerprint; None where unknown."""
        return self.metadata.get("tokenizer")


def content_fingerprint(prefix: str | Path, on_bin_block: Callable[[bytes], None] = lambda block: None) -> str:
    """Hash the content of ``{prefix}.bin`` and ``{prefix}.idx`` (about 1.5 GB/s).

    Args:
        prefix: of the corpus.
        on_bin_block: is given the ``.bin`` block by block, each but the last of ``HASH_BLOCK_BYTES``.
    """
    digests = []
    for kind in ("bin", "idx"):
        digest = hashlib.sha256()
        with open(f"{prefix}.{kind}", "rb") as file:
            while block := file.read(HASH_BLOCK_BYTES):
                digest.update(block)
                if kind == "bin":
                    on_bin_block(block)
        digests.append(digest.hexdigest())
    return combined_fingerprint(*digests)


def write_json_atomically(path: Path, content: dict[str, Any]) -> None:
    """Write ``content`` to ``path`` so that a reader sees the old file or the new one, never a part."""
    temporary = Path(f"{path}.tmp-{os.getpid()}")
    with open(temporary, "w", encoding="utf-8") as file:
        json.dump(content, file, indent=2, ensure_ascii=False, allow_nan=False)
        file.write("\n")
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)


def combined_fingerprint(bin_digest: str, idx_digest: str) -> str:
    """The fingerprint of a corpus from the SHA-256 of its two files, in hexadecimal digits."""
    return hashlib.sha256(f"{bin_digest} {idx_digest}".encode()).hexdigest()[:32]


def _without(content: dict[str, Any], name: str) -> dict[str, Any]:
    return {key: value for key, value in content.items() if key != name}
