"""A benchmark's files, in the form in which they are published: found, read, checked row by row, hashed.

CSV, JSON, JSON lines (also gzip), Parquet and ASDiv's XML. Nothing is asked of the network: a file that is not there is
told with the place where it belongs.
"""

from __future__ import annotations

import csv
import gzip
import hashlib
import io
import json
import re
import xml.etree.ElementTree as ElementTree
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet

from megatron_synE.config.json_fields import JsonFields

SHARDS = re.compile(r"-of-(\d+)\.parquet$")
REMEDY = "mend it, or fetch the file again"
TABLE = "megatron_synE/evaluation/tasks/README.md"

Item = dict[str, Any]


@dataclass(frozen=True)
class Form:
    """One of the forms in which a split is published."""

    pattern: str
    """Of the files below the data folder, shell patterns with ``|`` between them, each of which must find a file.
    ``{folder}`` stands for the subject's name there."""
    source: str
    """Where it is published."""
    item: Callable[[JsonFields], Item | None]
    """Makes an item of a row, None of one that the benchmark does not ask. Raises ValueError where it is broken."""
    columns: tuple[str, ...] = ()
    """Names of the columns of a CSV file that does not name them itself."""


class Items(list[Item]):
    """A split, in the order of its files. It is to lm-eval what a `datasets.Dataset` is.

    Args:
        files: path below the data folder → SHA-256 of the bytes that were read. Files of one pattern that are one row
            each stand under their folder's name, with the SHA-256 of their lines `digest  name`.
    """

    def __init__(self, items: Iterable[Item], files: dict[str, str]) -> None:
        super().__init__(items)
        self.files = files

    @property
    def features(self) -> dict[str, None]:
        """Names of the fields."""
        return dict.fromkeys(self[0])


def read_split(data_dir: Path, forms: Sequence[Form], folder: str = "") -> Items:
    """The items of a split.

    Raises:
        ValueError: no form of it is there (the message says where it belongs), two are, a file cannot be read or is
            empty, a row is broken, or an item's `id` is there twice.
    """
    patterns = [form.pattern.format(folder=folder) for form in forms]
    found = [
        (form, files) for form, pattern in zip(forms, patterns, strict=True) if (files := _files(data_dir, pattern))
    ]
    if not found:
        sources = [form.source for form in forms]
        places = "; or ".join(
            f"{_told(data_dir, pattern)} ({source})" for pattern, source in zip(patterns, sources, strict=True)
        )
        raise ValueError(f"data is missing: put it at {places}. {TABLE} has the table of all files")
    if len(found) > 1:
        both = " and ".join(str(files[0]) for _, files in found)
        raise ValueError(f"{both} are the same data in two forms: keep one of them, so that it is plain what was asked")
    [(form, files)] = found
    return _read(data_dir, form, files)


def _told(data_dir: Path, pattern: str) -> str:
    return " and ".join(str(data_dir / part) for part in pattern.split("|"))


def _files(data_dir: Path, pattern: str) -> list[Path]:
    parts = pattern.split("|")
    found = {part: [path for path in data_dir.glob(part) if path.is_file()] for part in parts}
    if not any(found.values()):
        return []
    for part, paths in found.items():
        announced = {int(match[1]) for path in paths if (match := SHARDS.search(path.name))}
        if not paths or (announced and announced != {len(paths)}):
            raise ValueError(f"{data_dir / part}: {len(paths)} of the files are there; fetch the others as well")
    return [path for part in parts for path in sorted(found[part], key=_natural_key)]


def _natural_key(path: Path) -> list[tuple[int, str]]:
    """Digits count as numbers: `10.json` comes after `2.json`."""
    return [(int(part), "") if part.isdigit() else (0, part) for part in re.split(r"(\d+)", path.name)]


def _read(data_dir: Path, form: Form, files: Sequence[Path]) -> Items:
    items: list[Item] = []
    hashes: dict[str, str] = {}
    first_at: dict[Any, str] = {}
    for path in files:
        content = path.read_bytes()
        hashes[path.relative_to(data_dir).as_posix()] = hashlib.sha256(content).hexdigest()
        for where, row in _rows(path, content, form.columns):
            fields = JsonFields(row, where, REMEDY)
            item = form.item(fields)
            if item is None:
                continue
            if "id" in item and first_at.setdefault(item["id"], where) != where:
                raise ValueError(f"{where}id {item['id']!r} is that of {first_at[item['id']].rstrip(': ')}; keep one")
            items.append(item)
    if not items:
        raise ValueError(f"{files[0]}: holds no item to ask; fetch the file again")
    return Items(items, _by_folder(hashes) if len(files) > 20 else hashes)


def _by_folder(hashes: dict[str, str]) -> dict[str, str]:
    listed = "".join(f"{digest}  {name}\n" for name, digest in hashes.items())
    folder = Path(next(iter(hashes))).parent.as_posix()
    return {f"{folder}/": hashlib.sha256(listed.encode()).hexdigest()}


def _rows(path: Path, content: bytes, columns: Sequence[str]) -> Iterator[tuple[str, Any]]:
    """The rows of a file, each with what stands before a field's name in messages."""
    if not content:
        raise ValueError(f"{path}: is empty; fetch the file again")
    if path.suffix == ".parquet":
        yield from _numbered(path, "row", _parquet_rows(path, content))
        return
    text = _text(path, content)
    if path.suffix == ".csv":
        yield from _csv_rows(path, text, columns)
    elif path.suffix == ".xml":
        yield from _xml_rows(path, text)
    elif path.suffix == ".json" and (whole := _whole_json(path, text)) is not None:
        yield from _numbered(path, "row", whole)
    else:
        yield from _json_lines(path, text)


def _numbered(path: Path, name: str, rows: Sequence[Any]) -> Iterator[tuple[str, Any]]:
    return ((f"{path} {name} {number}: ", row) for number, row in enumerate(rows, start=1))


def _parquet_rows(path: Path, content: bytes) -> list[Any]:
    try:
        return pyarrow.parquet.read_table(pyarrow.BufferReader(content), use_threads=False).to_pylist()
    except (pyarrow.ArrowException, OSError) as error:
        raise ValueError(f"{path}: is no Parquet file ({error}); fetch it again") from error


def _text(path: Path, content: bytes) -> str:
    if path.suffix == ".gz":
        try:
            content = gzip.decompress(content)
        except (OSError, EOFError, zlib.error) as error:
            raise ValueError(f"{path}: is no gzip file ({error}); fetch it again") from error
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(
            f"{path}: byte {error.start} is not UTF-8; convert the file to UTF-8, or fetch it again"
        ) from error


def _csv_rows(path: Path, text: str, columns: Sequence[str]) -> Iterator[tuple[str, Any]]:
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    names = list(columns)
    try:
        for row in reader:
            if not row:
                continue
            if not names:
                names = row
                continue
            where = f"{path} line {reader.line_num}: "
            if len(row) != len(names):
                raise ValueError(f"{where}has {len(row)} columns, not {len(names)} ({', '.join(names)}); {REMEDY}")
            yield where, dict(zip(names, row, strict=True))
    except csv.Error as error:
        raise ValueError(f"{path} line {reader.line_num}: is no CSV ({error}); {REMEDY}") from error


def _xml_rows(path: Path, text: str) -> Iterator[tuple[str, Any]]:
    try:
        root = ElementTree.fromstring(text)
    except (ElementTree.ParseError, ValueError) as error:
        raise ValueError(f"{path}: is no XML ({error}); fetch it again") from error
    problems = list(root.iter("Problem"))
    yield from _numbered(
        path, "Problem", [{**node.attrib, **{child.tag: child.text for child in node}} for node in problems]
    )


def _whole_json(path: Path, text: str) -> list[Any] | None:
    """The rows of a file that is one JSON value; None where it is JSON lines under the name .json."""
    try:
        content = json.loads(text)
    except (ValueError, RecursionError) as error:
        if text.lstrip().startswith("["):
            raise ValueError(f"{path}: is no JSON ({error}); fetch the file again") from error
        return None
    return content if isinstance(content, list) else [content]


def _json_lines(path: Path, text: str) -> Iterator[tuple[str, Any]]:
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        try:
            yield f"{path} line {number}: ", json.loads(line)
        except (ValueError, RecursionError) as error:
            raise ValueError(f"{path} line {number}: is no JSON ({error}); {REMEDY}") from error
