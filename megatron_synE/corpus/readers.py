"""Raw text in: JSON lines and plain text (as they are, gzip, zstandard) and parquet, read in chunks of bounded size.

A reader only cuts a file into chunks (``iter_chunks``), which is cheap and sequential; turning a chunk into checked
documents (``Chunk.parse``) is the expensive half and may run in another process.
"""

import glob
import gzip
import io
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, NamedTuple

import pyarrow
import pyarrow.parquet

from megatron_synE.corpus.chunks import Chunk, FilePosition, JsonLinesChunk, ParquetChunk, TextChunk

CHUNK_BYTES = 2 << 20
"""Target size of one chunk of input text; a longer line makes a longer chunk. With 8 MiB, processor time is a quarter
more: what is made of a chunk no longer fits into the caches."""

PARQUET_BUFFER_BYTES = 1 << 20
"""Read ahead in each parquet column."""
MAX_ROWS_PER_CHUNK = 65_536

JSON_SUFFIXES = (".jsonl", ".json", ".ndjson")
FORMATS = "names that end in .jsonl, .json, .ndjson or .txt (plain, .gz or .zst), or in .parquet"
STANDARD_INPUT = Path("-")
WHOLE_FILE, BLANK_LINE = "file", "blank-line"
"""Separators of plain text that have a name."""
BLANK_LINES = rb"\r?\n[ \t\r\n]*\n"
MAX_TEXT_BYTES = 256 << 20
"""A longer document of plain text is thought to be a missing separator."""
GLOB_CHARACTERS = re.compile(r"[*?\[]")


class Format(NamedTuple):
    """What a file is."""

    content: str
    """json, text or parquet."""
    compression: str
    """plain, gzip or zstd."""


def natural_key(path: str | Path) -> list[tuple[int, int | str]]:
    """Sort key that reads digits as numbers, so that ``part-10`` comes after ``part-2``."""
    return [(0, int(part)) if part.isdigit() else (1, part) for part in re.split(r"(\d+)", str(path)) if part]


def expand_inputs(patterns: Iterable[str | Path]) -> list[Path]:
    """Resolve files, directories and glob patterns to a list of files; ``-`` is standard input.

    Patterns keep the order in which they are given; the files of one pattern or directory are in natural order. A file
    that two patterns match is read once, at its first place.

    Raises:
        ValueError: a pattern matches nothing, or a file has a format that is not known.
    """
    files: dict[Path, None] = {}
    for pattern in map(str, patterns):
        path = Path(pattern)
        if path.is_dir():
            found = [file for file in path.iterdir() if file.is_file() and file_format(file) is not None]
        elif path == STANDARD_INPUT or path.exists() or not GLOB_CHARACTERS.search(pattern):
            found = [path]
        else:
            found = [Path(name) for name in glob.glob(pattern, recursive=True) if Path(name).is_file()]
        if not found:
            raise ValueError(f"--input {pattern}: no file matches; expected {FORMATS}")
        files.update(dict.fromkeys(sorted(found, key=natural_key)))
    for file in files:
        if file == STANDARD_INPUT:
            continue
        if not file.is_file():
            raise ValueError(f"--input {file}: no such file")
        if file_format(file) is None:
            raise ValueError(f"--input {file}: unknown format; expected {FORMATS}")
    return list(files)


def iter_chunks(
    path: Path,
    columns: Sequence[str],
    chunk_bytes: int = CHUNK_BYTES,
    *,
    start: FilePosition | None = None,
    separator: str | None = None,
) -> Iterator[Chunk]:
    """Cut one input into chunks of about ``chunk_bytes`` of uncompressed text.

    Args:
        path: a file that ``expand_inputs`` accepts, or ``-`` for standard input.
        columns: the keys that will be parsed; only these parquet columns are read.
        chunk_bytes: target size of a chunk.
        start: the ``end`` of an earlier chunk of the same file, to go on from there.
        separator: of plain text; None for ``WHOLE_FILE``. Standard input is plain text where this is given.

    Raises:
        ValueError: the file is truncated, is not of the format that its name says, or lacks a column.
    """
    position = start or FilePosition()
    if path == STANDARD_INPUT:
        kind = Format("json" if separator is None else "text", "plain")
    else:
        found = file_format(path)
        assert found is not None, path
        kind = found
    if kind.content == "parquet":
        yield from _parquet_chunks(path, columns, chunk_bytes, position)
        return
    with _open_compressed(path, kind.compression) as (file, place_on_disk):
        if position.offset:
            _skip(file, path, position.offset)
        if kind.content == "json":
            yield from _json_chunks(file, path, place_on_disk, chunk_bytes, position)
        else:
            between = separator_pattern(WHOLE_FILE if separator is None else separator)
            yield from _text_chunks(file, path, place_on_disk, chunk_bytes, position, between)


def separator_pattern(separator: str) -> re.Pattern[bytes] | None:
    """What ``--separator`` means: ``file``, ``blank-line``, or characters in which \\n, \\t and \\\\ are escapes.

    Raises:
        ValueError: it is empty.
    """
    if separator == WHOLE_FILE:
        return None
    if separator == BLANK_LINE:
        return re.compile(BLANK_LINES)
    if not separator:
        raise ValueError(f"--separator: empty; give {WHOLE_FILE}, {BLANK_LINE}, or the characters between documents")
    escapes = {"\\n": "\n", "\\t": "\t", "\\r": "\r", "\\\\": "\\"}
    return re.compile(re.escape(re.sub(r"\\[ntr\\]", lambda match: escapes[match.group()], separator).encode()))


def file_format(path: Path) -> Format | None:
    """What a file is, by its name."""
    name = path.name.lower()
    if name.endswith((".parquet", ".pq")):
        return Format("parquet", "plain")
    for suffix, compression in ((".gz", "gzip"), (".zst", "zstd"), ("", "plain")):
        if name.endswith(tuple(base + suffix for base in JSON_SUFFIXES)):
            return Format("json", compression)
        if name.endswith(f".txt{suffix}"):
            return Format("text", compression)
    return None


@contextmanager
def _open_compressed(path: Path, compression: str) -> Iterator[tuple[IO[bytes], Callable[[], int]]]:
    """The uncompressed stream of a file, and what tells how far the file itself has been read, in bytes."""
    if path == STANDARD_INPUT:
        yield sys.stdin.buffer, lambda: 0
        return
    with open(path, "rb", buffering=0) as raw:
        if compression == "plain":
            yield raw, raw.tell
        elif compression == "gzip":
            with gzip.open(raw, "rb") as file:
                yield file, raw.tell  # type: ignore[misc]
        else:
            try:
                import zstandard
            except ImportError as error:
                raise ValueError(f"{path}: reading .zst needs the package zstandard; install it") from error
            decompressor = zstandard.ZstdDecompressor(max_window_size=1 << 31)  # what --long=31 writes
            yield decompressor.stream_reader(raw, read_across_frames=True), raw.tell


def _skip(file: IO[bytes], path: Path, num_bytes: int) -> None:
    """Go on from a place in the uncompressed stream."""
    if isinstance(file, io.FileIO):
        file.seek(num_bytes)
        return
    while num_bytes:
        data = _read_some(file, path, min(num_bytes, CHUNK_BYTES))
        if not data:
            raise ValueError(f"{path}: ends before the place from which it was to be read on; it was changed")
        num_bytes -= len(data)


def _json_chunks(
    file: IO[bytes], path: Path, place_on_disk: Callable[[], int], chunk_bytes: int, position: FilePosition
) -> Iterator[JsonLinesChunk]:
    def chunk(data: bytes) -> JsonLinesChunk:
        nonlocal position
        first_line, offset = position.line, position.offset + len(data)
        position = FilePosition(offset, first_line + data.count(b"\n"), place_on_disk())
        return JsonLinesChunk(str(path), first_line, data, position)

    pieces: list[bytes] = []  # the beginning of a line whose end is not read yet
    while data := _read_some(file, path, chunk_bytes):
        end = data.rfind(b"\n") + 1
        if end == 0:
            pieces.append(data)
            continue
        whole = b"".join((*pieces, memoryview(data)[:end]))
        pieces = [data[end:]]
        yield chunk(whole)
    if rest := b"".join(pieces):
        yield chunk(rest)


def _text_chunks(
    file: IO[bytes],
    path: Path,
    place_on_disk: Callable[[], int],
    chunk_bytes: int,
    position: FilePosition,
    separator: re.Pattern[bytes] | None,
) -> Iterator[TextChunk]:
    def chunk(data: bytes) -> TextChunk:
        nonlocal position
        first_line, offset = position.line, position.offset + len(data)
        position = FilePosition(offset, first_line + data.count(b"\n"), place_on_disk())
        return TextChunk(str(path), first_line, data, separator, position)

    complete = separator
    if separator is not None and separator.pattern == BLANK_LINES:  # all of them are there once something else follows
        complete = re.compile(BLANK_LINES + rb"(?=[ \t\r]*[^ \t\r\n])")
    rest = b""
    while data := _read_some(file, path, chunk_bytes):
        rest += data
        # from the left, as the documents are split: separators may overlap
        end = max((match.end() for match in complete.finditer(rest)), default=0) if complete is not None else 0
        if end:
            yield chunk(rest[:end])
            rest = rest[end:]
        if len(rest) > MAX_TEXT_BYTES:
            raise ValueError(
                f"{path}: a document of more than {MAX_TEXT_BYTES >> 20} MiB; name what stands between documents with "
                f"--separator, for example {BLANK_LINE}"
            )
    if rest:
        yield chunk(rest)


def _read_some(file: IO[bytes], path: Path, size: int) -> bytes:
    """Read ``size`` bytes, fewer only at the end of the file; name the file when it is damaged."""
    try:
        data = file.read(size)
        while len(data) < size and (more := file.read(size - len(data))):
            data += more
    except Exception as error:  # zlib, gzip and zstandard each have exceptions of their own
        raise ValueError(f"{path}: cannot be read ({error}); the file is truncated or damaged") from error
    return data


def _parquet_chunks(
    path: Path, columns: Sequence[str], chunk_bytes: int, position: FilePosition
) -> Iterator[ParquetChunk]:
    """Row groups one by one, so that no more than a buffer of each column is in memory; ``offset`` counts rows."""
    try:
        with pyarrow.parquet.ParquetFile(path, pre_buffer=False, buffer_size=PARQUET_BUFFER_BYTES) as file:
            missing = [name for name in columns if name not in file.schema_arrow.names]
            if missing:
                raise ValueError(f"{path}: no column {missing[0]!r}; it has {', '.join(file.schema_arrow.names)}")
            num_rows, bytes_on_disk, row = max(file.metadata.num_rows, 1), path.stat().st_size, 0
            for number in range(file.num_row_groups):
                group = file.metadata.row_group(number)
                if row + group.num_rows <= position.offset:
                    row += group.num_rows
                    continue
                for batch in file.iter_batches(
                    _rows_per_chunk(group, columns, chunk_bytes), [number], list(columns), use_threads=False
                ):
                    first, row = row, row + batch.num_rows
                    if row > position.offset:
                        unread = batch.slice(max(0, position.offset - first))
                        end = FilePosition(row, row + 1, bytes_on_disk * row // num_rows)
                        yield ParquetChunk(str(path), row - unread.num_rows + 1, unread, end)
    except (pyarrow.ArrowException, OSError) as error:
        raise ValueError(f"{path}: not a readable parquet file ({error})") from error


def _rows_per_chunk(group: pyarrow.parquet.RowGroupMetaData, columns: Sequence[str], chunk_bytes: int) -> int:
    """How many rows of a row group hold about ``chunk_bytes`` in these columns."""
    parts = (group.column(i) for i in range(group.num_columns))
    size = sum(part.total_uncompressed_size for part in parts if part.path_in_schema.split(".")[0] in columns)
    return max(1, min(MAX_ROWS_PER_CHUNK, chunk_bytes * max(group.num_rows, 1) // max(size, 1)))
