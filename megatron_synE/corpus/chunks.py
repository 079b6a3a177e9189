"""A piece of an input file, and the checked documents in it.

Texts stay in Arrow's buffers from the parser to the tokenizer: a Python string for each document would cost as much as
tokenising it, where documents are short. A chunk of JSON lines is parsed in one call where every line of it is good;
else line by line, which accepts at least as much and says what is wrong with the rest. Both give the same documents.
"""

import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import orjson
import pyarrow
import pyarrow.json

from megatron_synE.corpus.text_columns import (
    as_strings,
    is_encodable,
    is_utf8,
    kept_column,
    missing_and_blank,
    utf8_column,
)

NEWLINE, OPENING_BRACE, CLOSING_BRACE = b"\n{}"


@dataclass(frozen=True)
class BadLine:
    """An input line (or parquet row) that gave no document."""

    location: str
    """``file:line``, counted from 1."""
    reason: str
    """What is wrong with it; equal faults have equal reasons, so that they can be counted."""


@dataclass(frozen=True)
class FilePosition:
    """How far a file has been read."""

    offset: int = 0
    """Bytes, uncompressed; Parquet: rows."""
    line: int = 1
    """Number of the next line, or row."""
    bytes_on_disk: int = 0
    """The same as a place in the file as it lies on disk, for progress."""


@dataclass
class DocumentBatch:
    """The checked documents of one chunk, column by column and in input order."""

    columns: dict[str, pyarrow.LargeStringArray]
    """For each text key its texts, all of equal length."""
    lines: npt.NDArray[np.int64]
    """[documents] the line, or row, of each."""
    label_column: pyarrow.LargeStringArray | None
    """The value of the label key per document, where one was asked for."""
    kept: dict[str, pyarrow.StringArray]
    """Other keys that were asked for; null where missing, JSON where not a string."""
    bad_lines: list[BadLine] = field(default_factory=list)
    num_lines: int = 0
    """Lines looked at: documents plus bad lines; blank lines do not count."""

    @property
    def texts(self) -> dict[str, list[str]]:
        """The texts of each key as Python's strings."""
        return {key: column.to_pylist() for key, column in self.columns.items()}

    @property
    def labels(self) -> list[str] | None:
        """The labels as Python's strings."""
        return None if self.label_column is None else self.label_column.to_pylist()


class Chunk(Protocol):
    """A piece of an input file that can travel to another process."""

    @property
    def num_bytes(self) -> int: ...

    @property
    def end(self) -> FilePosition:
        """Where the next chunk begins."""
        ...

    def parse(self, keys: Sequence[str], label_key: str | None = None, kept: Sequence[str] = ()) -> DocumentBatch:
        """Turn the chunk into documents. A line with any fault in any key is left out for all keys."""
        ...


@dataclass(frozen=True)
class JsonLinesChunk:
    """Whole lines of a JSON-lines file."""

    path: str
    first_line: int
    """Number of the first line in the file, counted from 1."""
    data: bytes
    end: FilePosition

    @property
    def num_bytes(self) -> int:
        return len(self.data)

    def parse(self, keys: Sequence[str], label_key: str | None = None, kept: Sequence[str] = ()) -> DocumentBatch:
        strings = [*keys, *([label_key] if label_key is not None else [])]
        columns = _parse_lines(self.data, strings, kept)
        if columns is not None:
            lines = np.arange(self.first_line, self.first_line + len(columns[keys[0]]))
            return _checked(self.path, lines, columns, keys, label_key, kept, [])
        rows: dict[str, list[Any]] = {name: [] for name in dict.fromkeys([*strings, *kept])}
        numbers, faults = [], []
        for number, line in enumerate(self.data.split(b"\n"), start=self.first_line):
            if not line or line.isspace():
                continue
            record, reason = _parse_line(line, strings, keys, kept)
            if record is None:
                faults.append((number, reason))
                continue
            numbers.append(number)
            for name, values in rows.items():
                values.append(record.get(name))
        columns = {name: pyarrow.array(rows[name], pyarrow.large_string()) for name in strings}
        columns |= {name: as_strings(rows[name]) for name in kept if name not in columns}
        return _checked(self.path, np.array(numbers, np.int64), columns, keys, label_key, kept, faults)


@dataclass(frozen=True)
class ParquetChunk:
    """Rows of a parquet file; a row takes the place of a line in every report."""

    path: str
    first_row: int
    rows: pyarrow.RecordBatch
    """With the columns that are needed."""
    end: FilePosition

    @property
    def num_bytes(self) -> int:
        return int(self.rows.nbytes)

    def parse(self, keys: Sequence[str], label_key: str | None = None, kept: Sequence[str] = ()) -> DocumentBatch:
        strings = [*keys, *([label_key] if label_key is not None else [])]
        numbers = np.arange(self.first_row, self.first_row + self.rows.num_rows)
        columns: dict[str, Any] = {}
        reasons = np.zeros(len(numbers), dtype=object)
        for name in strings:
            column, undecodable = utf8_column(self.rows.column(name))
            if column is None:
                reasons[reasons == 0] = f"key {name!r} is not a string"
                column = pyarrow.nulls(len(numbers), pyarrow.large_string())
            reasons[(reasons == 0) & undecodable] = "not UTF-8"
            columns[name] = column
        columns |= {name: kept_column(self.rows.column(name)) for name in kept if name not in columns}
        bad = np.flatnonzero(reasons != 0)
        faults = [(int(numbers[i]), str(reasons[i])) for i in bad]
        if len(bad):
            good = pyarrow.array(reasons == 0)
            columns = {name: column.filter(good) for name, column in columns.items()}
            numbers = np.delete(numbers, bad)
        return _checked(self.path, numbers, columns, keys, label_key, kept, faults)


@dataclass(frozen=True)
class TextChunk:
    """Whole documents of a plain-text file. A document's line is the one on which its piece of the file begins."""

    path: str
    first_line: int
    data: bytes
    separator: re.Pattern[bytes] | None
    """Between documents; None: the chunk is one document."""
    end: FilePosition

    @property
    def num_bytes(self) -> int:
        return len(self.data)

    def parse(self, keys: Sequence[str], label_key: str | None = None, kept: Sequence[str] = ()) -> DocumentBatch:
        if len(keys) > 1 or label_key is not None:
            raise ValueError(f"{self.path}: plain text has one text a document and no label; use JSON lines for more")
        line, texts, numbers, faults = self.first_line, [], [], []
        for start, stop, following in self._pieces():
            piece, number = self.data[start:stop], line
            line += self.data.count(b"\n", start, following)
            if piece and not piece.isspace():
                try:
                    texts.append(piece.decode("utf-8-sig" if number == 1 else "utf-8"))
                    numbers.append(number)
                except UnicodeDecodeError:
                    faults.append((number, "not UTF-8"))
        columns = {keys[0]: pyarrow.array(texts, pyarrow.large_string())}
        columns |= {name: pyarrow.nulls(len(texts), pyarrow.string()) for name in kept if name not in columns}
        return _checked(self.path, np.array(numbers, np.int64), columns, keys, None, kept, faults)

    def _pieces(self) -> Iterator[tuple[int, int, int]]:
        """(start, end, start of the next one) of each piece between separators."""
        start = 0
        for match in self.separator.finditer(self.data) if self.separator is not None else ():
            yield start, match.start(), match.end()
            start = match.end()
        yield start, len(self.data), len(self.data)


def _checked(
    path: str,
    lines: npt.NDArray[np.int64],
    columns: dict[str, Any],
    keys: Sequence[str],
    label_key: str | None,
    kept: Sequence[str],
    faults: list[tuple[int, str]],
) -> DocumentBatch:
    """Leave out rows without a text or label, and report them beside the ``faults`` (line, reason) found before."""
    fault, reasons = np.zeros(len(lines), dtype=np.int64), [""]
    for key in keys:
        missing, blank = missing_and_blank(columns[key])
        for mask, reason in ((missing, f"missing key {key!r}"), (blank, f"empty document in key {key!r}")):
            reasons.append(reason)
            fault[(fault == 0) & mask] = len(reasons) - 1
    if label_key is not None:
        reasons.append(f"missing label key {label_key!r}")
        fault[(fault == 0) & missing_and_blank(columns[label_key])[0]] = len(reasons) - 1
    num_lines = len(lines) + len(faults)
    if fault.any():
        faults = sorted([*faults, *((int(lines[i]), reasons[fault[i]]) for i in np.flatnonzero(fault))])
        good = pyarrow.array(fault == 0)
        columns = {name: column.filter(good) for name, column in columns.items()}
        lines = lines[fault == 0]
    return DocumentBatch(
        {key: columns[key] for key in keys},
        lines,
        None if label_key is None else columns[label_key],
        {name: columns[name].cast(pyarrow.string()) for name in kept},
        [BadLine(f"{path}:{number}", reason) for number, reason in faults],
        num_lines,
    )


def _parse_lines(data: bytes, strings: Sequence[str], kept: Sequence[str]) -> dict[str, Any] | None:
    """The columns of JSON lines, parsed in one call; None where that could differ from a parser of single lines.

    A line that begins with { and ends with } holds whole objects, as no object goes on with {; and there are as many of
    them as lines. A number is kept as it is written only if it is an integer.
    """
    content = np.frombuffer(data, np.uint8)
    ends = np.flatnonzero(content == NEWLINE)
    if data and not data.endswith(b"\n"):
        ends = np.append(ends, len(data))
    starts = np.concatenate([[0], ends[:-1] + 1]) if len(ends) else ends
    whole = (content[starts] == OPENING_BRACE) & (content[ends - 1] == CLOSING_BRACE)
    if not len(ends) or not whole.all() or len(data) > np.iinfo(np.int32).max // 2 or not is_utf8(data):
        return None
    try:
        types = {name: pyarrow.string() for name in strings}
        for name in kept:
            types.setdefault(name, _string_or_integer(data[: ends[0]], name))
        table = _read_json(data, types)
        if table.num_rows != len(ends):
            return None
        columns = {name: pyarrow.concat_arrays(table.column(name).chunks) for name in types}
        for column in columns.values():
            column.validate(full=True)
    except pyarrow.ArrowException:
        return None
    return {
        name: column.cast(pyarrow.large_string() if name in strings else pyarrow.string())
        for name, column in columns.items()
    }


def _string_or_integer(line: bytes, name: str) -> pyarrow.DataType:
    """The type of a key's value; ArrowInvalid where it is neither."""
    try:
        _read_json(line, {name: pyarrow.string()})
        return pyarrow.string()
    except pyarrow.ArrowInvalid:
        _read_json(line, {name: pyarrow.int64()})
        return pyarrow.int64()


def _read_json(data: bytes, types: dict[str, pyarrow.DataType]) -> pyarrow.Table:
    return pyarrow.json.read_json(
        pyarrow.BufferReader(data),
        read_options=pyarrow.json.ReadOptions(use_threads=False, block_size=len(data) + 1),
        parse_options=pyarrow.json.ParseOptions(
            explicit_schema=pyarrow.schema(types), newlines_in_values=False, unexpected_field_behavior="ignore"
        ),
    )


def _parse_line(
    line: bytes, strings: Sequence[str], keys: Sequence[str], kept: Sequence[str]
) -> tuple[dict[str, Any] | None, str]:
    """(the record, "") or (None, what is wrong with the line)."""
    try:
        record = orjson.loads(line)
    except orjson.JSONDecodeError:
        columns = _parse_lines(line, strings, kept)  # what is accepted among others is accepted alone
        if columns is not None:
            return {name: column[0].as_py() for name, column in columns.items()}, ""
        try:  # Python's own parser accepts what other programs write (NaN, a lone surrogate in a key that nobody reads)
            record = json.loads(line.decode("utf-8-sig"))
        except UnicodeDecodeError:
            return None, "not UTF-8"
        except (ValueError, RecursionError):
            return None, "malformed JSON"
    if not isinstance(record, dict):
        return None, "not a JSON object"
    for key in keys:
        text = record.get(key)
        if text is None:
            return None, f"missing key {key!r}"
        if not isinstance(text, str):
            return None, f"key {key!r} is not a string"
    for name in strings:
        if not isinstance(record.get(name), str):
            return None, f"missing label key {name!r}"
        if not is_encodable(record[name]):
            return None, "text holds a lone surrogate, which UTF-8 cannot encode"
    return record, ""
