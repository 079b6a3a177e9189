"""Whole records of input files, with all of their keys: for what hands them on, or does not know which it wants."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import orjson
import pyarrow.parquet

from megatron_synE.corpus.chunks import BadLine, JsonLinesChunk, ParquetChunk, TextChunk
from megatron_synE.corpus.readers import file_format, iter_chunks


class Record(NamedTuple):
    """One line of JSON, one row of Parquet, or one plain text as ``{"text": …}``."""

    place: str
    """``file:line``, counted from 1."""
    content: dict[str, Any]
    line: bytes
    """As JSON, without the line's end: the line as it was read, where it was JSON."""


def refuse(line: BadLine) -> None:
    """What is done about a bad line where nothing else is said."""
    raise ValueError(f"{line.location}: {line.reason}")


def iter_records(
    path: Path, on_bad_line: Callable[[BadLine], None] = refuse, on_progress: Callable[[int], None] = lambda done: None
) -> Iterator[Record]:
    """The records of a file, in order and in bounded memory.

    Args:
        path: a file that ``expand_inputs`` accepts.
        on_bad_line: called with what is no JSON object.
        on_progress: called with the place in the file, in bytes on disk.

    Raises:
        ValueError: the file cannot be read.
    """
    for chunk in iter_chunks(path, _columns(path)):
        if isinstance(chunk, JsonLinesChunk):
            yield from _json_records(chunk, on_bad_line)
        elif isinstance(chunk, ParquetChunk):
            for number, row in enumerate(chunk.rows.to_pylist(), start=chunk.first_row):
                yield Record(f"{path}:{number}", row, orjson.dumps(row, default=str))
        else:
            assert isinstance(chunk, TextChunk)
            batch = chunk.parse(["text"])
            for bad_line in batch.bad_lines:
                on_bad_line(bad_line)
            for number, text in zip(batch.lines.tolist(), batch.texts["text"], strict=True):
                yield Record(f"{path}:{number}", {"text": text}, orjson.dumps({"text": text}))
        on_progress(chunk.end.bytes_on_disk)


def _columns(path: Path) -> list[str]:
    """All of a Parquet file's; other files give their keys by themselves."""
    kind = file_format(path)
    if kind is None or kind.content != "parquet":
        return ["text"]
    try:
        return list(pyarrow.parquet.read_schema(path).names)
    except (pyarrow.ArrowException, OSError) as error:
        raise ValueError(f"{path}: not a readable parquet file ({error})") from error


def _json_records(chunk: JsonLinesChunk, on_bad_line: Callable[[BadLine], None]) -> Iterator[Record]:
    for number, line in enumerate(chunk.data.split(b"\n"), start=chunk.first_line):
        if not line or line.isspace():
            continue
        place = f"{chunk.path}:{number}"
        try:
            content = _parsed(line)
        except (ValueError, RecursionError):
            on_bad_line(BadLine(place, "malformed JSON"))
            continue
        if isinstance(content, dict):
            yield Record(place, content, line.removesuffix(b"\r"))
        else:
            on_bad_line(BadLine(place, "not a JSON object"))


def _parsed(line: bytes) -> Any:
    """Python's own parser accepts what other programs write, such as NaN."""
    try:
        return orjson.loads(line)
    except orjson.JSONDecodeError:
        return json.loads(line.decode("utf-8-sig"))
