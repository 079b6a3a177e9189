"""Raw text in: JSON lines (plain, gzip, zstandard) and parquet, read in chunks of bounded size.

A reader only cuts a file into chunks (``iter_chunks``), which is cheap and sequential; turning a chunk into checked
documents (``Chunk.parse``) is the expensive half and may run in another process.
"""

import glob
import gzip
import json
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, Protocol

import orjson

CHUNK_BYTES = 8 << 20
"""Target size of one chunk of input text; a longer line makes a longer chunk."""

JSON_SUFFIXES = (".jsonl", ".json", ".ndjson")
FORMATS = "names that end in .jsonl, .json or .ndjson (plain, .gz or .zst), or in .parquet"
GLOB_CHARACTERS = re.compile(r"[*?\[]")


@dataclass(frozen=True)
class BadLine:
    """An input line (or parquet row) that gave no document."""

    location: str
    """``file:line``, counted from 1."""
    reason: str
    """What is wrong with it; equal faults have equal reasons, so that they can be counted."""


@dataclass
class DocumentBatch:
    """The checked documents of one chunk, column by column."""

    texts: dict[str, list[str]]
    """For each JSON key its texts, all of equal length and in input order."""
    labels: list[str] | None
    """The value of the label key per document, where one was asked for."""
    bad_lines: list[BadLine] = field(default_factory=list)
    num_lines: int = 0
    """Lines looked at: documents plus bad lines; blank lines do not count."""


class Chunk(Protocol):
    """A piece of an input file that can travel to another process."""

    @property
    def num_bytes(self) -> int: ...

    def parse(self, keys: Sequence[str], label_key: str | None = None) -> DocumentBatch:
        """Turn the chunk into documents. A line with any fault in any key is left out for all keys."""
        ...


class _RecordCheck:
    """Collects good records into columns and says what is wrong with the others."""

    def __init__(self, keys: Sequence[str], label_key: str | None) -> None:
        self.keys, self.label_key = keys, label_key
        self.batch = DocumentBatch(texts={key: [] for key in keys}, labels=None if label_key is None else [])

    def add(self, record: Any, location: str) -> None:
        reason = self._fault(record)
        self.batch.num_lines += 1
        if reason is not None:
            self.batch.bad_lines.append(BadLine(location, reason))
            return
        for key in self.keys:
            self.batch.texts[key].append(record[key])
        if self.batch.labels is not None:
            self.batch.labels.append(record[self.label_key])

    def reject(self, location: str, reason: str) -> None:
        self.batch.num_lines += 1
        self.batch.bad_lines.append(BadLine(location, reason))

    def _fault(self, record: Any) -> str | None:
        if not isinstance(record, dict):
            return "not a JSON object"
        for key in self.keys:
            text = record.get(key)
            if text is None:
                return f"missing key {key!r}"
            if not isinstance(text, str):
                return f"key {key!r} is not a string"
            if not text or text.isspace():
                return f"empty document in key {key!r}"
        if self.label_key is not None and not isinstance(record.get(self.label_key), str):
            return f"missing label key {self.label_key!r}"
        return None


@dataclass(frozen=True)
class JsonLinesChunk:
    """Whole lines of a JSON-lines file."""

    path: str
    first_line: int
    """Number of the first line in the file, counted from 1."""
    data: bytes

    @property
    def num_bytes(self) -> int:
        return len(self.data)

    def parse(self, keys: Sequence[str], label_key: str | None = None) -> DocumentBatch:
        check = _RecordCheck(keys, label_key)
        for number, line in enumerate(self.data.split(b"\n"), start=self.first_line):
            if not line or line.isspace():
                continue
            try:
                record = orjson.loads(line)
            except orjson.JSONDecodeError:
                self._parse_leniently(line, f"{self.path}:{number}", check)
            else:
                check.add(record, f"{self.path}:{number}")
        return check.batch

    @staticmethod
    def _parse_leniently(line: bytes, location: str, check: _RecordCheck) -> None:
        """Python's own parser accepts what other programs write (NaN, a lone surrogate in a key that nobody reads)."""
        try:
            record = json.loads(line.decode("utf-8-sig"))
        except UnicodeDecodeError:
            check.reject(location, "not UTF-8")
        except (ValueError, RecursionError):
            check.reject(location, "malformed JSON")
        else:
            values = [record.get(key) for key in check.keys] if isinstance(record, dict) else []
            if all(_is_encodable(value) for value in values):
                check.add(record, location)
            else:
                check.reject(location, "text holds a lone surrogate, which UTF-8 cannot encode")


@dataclass(frozen=True)
class ParquetChunk:
    """Rows of a parquet file; a row takes the place of a line in every report."""

    path: str
    first_row: int
    rows: Any
    """A ``pyarrow.RecordBatch`` with the columns that are needed."""

    @property
    def num_bytes(self) -> int:
        return int(self.rows.nbytes)

    def parse(self, keys: Sequence[str], label_key: str | None = None) -> DocumentBatch:
        check = _RecordCheck(keys, label_key)
        names = self.rows.schema.names
        try:
            columns = [column.to_pylist() for column in self.rows.columns]
        except UnicodeDecodeError:
            columns = [[_decode_scalar(value) for value in column] for column in self.rows.columns]
        for number, values in enumerate(zip(*columns, strict=True), start=self.first_row):
            location = f"{self.path}:{number}"
            if any(isinstance(value, UnicodeDecodeError) for value in values):
                check.reject(location, "not UTF-8")
            else:
                check.add(dict(zip(names, values, strict=True)), location)
        return check.batch


def _decode_scalar(value: Any) -> Any:
    try:
        return value.as_py()
    except UnicodeDecodeError as error:
        return error


def _is_encodable(value: Any) -> bool:
    if isinstance(value, str):
        try:
            value.encode("utf-8")
        except UnicodeEncodeError:
            return False
    return True


def natural_key(path: str | Path) -> list[tuple[int, int | str]]:
    """Sort key that reads digits as numbers, so that ``part-10`` comes after ``part-2``."""
    return [(0, int(part)) if part.isdigit() else (1, part) for part in re.split(r"(\d+)", str(path)) if part]


def expand_inputs(patterns: Iterable[str | Path]) -> list[Path]:
    """Resolve files, directories and glob patterns to a list of files.

    Patterns keep the order in which they are given; the files of one pattern or directory are in natural order. A file
    that two patterns match is read once, at its first place.

    Raises:
        ValueError: a pattern matches nothing, or a file has a format that is not known.
    """
    files: dict[Path, None] = {}
    for pattern in map(str, patterns):
        path = Path(pattern)
        if path.is_dir():
            found = [file for file in path.iterdir() if file.is_file() and _format(file) is not None]
        elif path.exists() or not GLOB_CHARACTERS.search(pattern):
            found = [path]
        else:
            found = [Path(name) for name in glob.glob(pattern, recursive=True) if Path(name).is_file()]
        if not found:
            raise ValueError(f"--input {pattern}: no file matches; expected {FORMATS}")
        files.update(dict.fromkeys(sorted(found, key=natural_key)))
    for file in files:
        if not file.is_file():
            raise ValueError(f"--input {file}: no such file")
        if _format(file) is None:
            raise ValueError(f"--input {file}: unknown format; expected {FORMATS}")
    return list(files)


def iter_chunks(path: Path, columns: Sequence[str], chunk_bytes: int = CHUNK_BYTES) -> Iterator[Chunk]:
    """Cut one file into chunks of about ``chunk_bytes`` of uncompressed text.

    Args:
        path: a file that ``expand_inputs`` accepts.
        columns: the keys that will be parsed; only these parquet columns are read.
        chunk_bytes: target size of a chunk.

    Raises:
        ValueError: the file is truncated, is not of the format that its name says, or lacks a column.
    """
    kind = _format(path)
    assert kind is not None, path
    if kind == "parquet":
        yield from _parquet_chunks(path, columns, chunk_bytes)
    else:
        yield from _json_chunks(path, kind, chunk_bytes)


def _format(path: Path) -> str | None:
    name = path.name.lower()
    if name.endswith((".parquet", ".pq")):
        return "parquet"
    for suffix, compression in ((".gz", "gzip"), (".zst", "zstd"), ("", "plain")):
        if name.endswith(tuple(base + suffix for base in JSON_SUFFIXES)):
            return compression
    return None


def _open_compressed(path: Path, kind: str) -> IO[bytes]:
    if kind == "gzip":
        return gzip.open(path, "rb")  # type: ignore[return-value]
    if kind == "zstd":
        try:
            import zstandard
        except ImportError as error:
            raise ValueError(f"{path}: reading .zst needs the package zstandard; install it") from error
        decompressor = zstandard.ZstdDecompressor(max_window_size=1 << 31)  # what --long=31 writes
        return decompressor.stream_reader(open(path, "rb"), read_across_frames=True, closefd=True)
    return open(path, "rb", buffering=0)


def _json_chunks(path: Path, kind: str, chunk_bytes: int) -> Iterator[JsonLinesChunk]:
    line, pieces = 1, []  # pieces: the beginning of a line whose end is not read yet
    with _open_compressed(path, kind) as file:
        while data := _read_some(file, path, chunk_bytes):
            end = data.rfind(b"\n") + 1
            if end == 0:
                pieces.append(data)
                continue
            whole = b"".join((*pieces, memoryview(data)[:end]))
            pieces = [data[end:]]
            yield JsonLinesChunk(str(path), line, whole)
            line += whole.count(b"\n")
    if rest := b"".join(pieces):
        yield JsonLinesChunk(str(path), line, rest)


def _read_some(file: IO[bytes], path: Path, size: int) -> bytes:
    """Read ``size`` bytes, fewer only at the end of the file; name the file when it is damaged."""
    try:
        data = file.read(size)
        while len(data) < size and (more := file.read(size - len(data))):
            data += more
    except Exception as error:  # zlib, gzip and zstandard each have exceptions of their own
        raise ValueError(f"{path}: cannot be read ({error}); the file is truncated or damaged") from error
    return data


def _parquet_chunks(path: Path, columns: Sequence[str], chunk_bytes: int) -> Iterator[ParquetChunk]:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as error:
        raise ValueError(f"{path}: reading parquet needs the package pyarrow; install it") from error
    try:
        file = pyarrow.parquet.ParquetFile(path, pre_buffer=False)
        missing = [name for name in columns if name not in file.schema_arrow.names]
        if missing:
            raise ValueError(f"{path}: no column {missing[0]!r}; it has {', '.join(file.schema_arrow.names)}")
        rows = max(file.metadata.num_rows, 1)
        size = sum(file.metadata.row_group(i).total_byte_size for i in range(file.num_row_groups))
        rows_per_chunk = max(1, min(65_536, chunk_bytes * rows // max(size, 1)))
        row = 1
        for batch in file.iter_batches(batch_size=rows_per_chunk, columns=list(columns), use_threads=False):
            yield ParquetChunk(str(path), row, batch)
            row += batch.num_rows
    except pyarrow.ArrowException as error:
        raise ValueError(f"{path}: not a readable parquet file ({error})") from error
