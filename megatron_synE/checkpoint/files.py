"""The list of a checkpoint's files, by which every byte that is read is checked. Nothing here needs torch.

`files.json` is `{"checksum": …, "files": {name: {"bytes": …, "checksum": …}}}`: the size and xxh3_128 of every other
file, and xxh3_128 of the list itself. A checkpoint of format 1 has sizes only, `{"files": {name: bytes}}`.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import xxhash

STATE_FILE = "state.json"
FILES_FILE = "files.json"
INDEX_FILE = "index.json"
METADATA_FILE = "metadata.json"

MAX_INTEGER = 2**53
"""Larger ones are no count of anything, and other readers of JSON round them."""
_PIECE_BYTES = 2**20
_ADVICE = "copy the checkpoint again, or use another one"


class DamagedCheckpoint(ValueError):
    """A checkpoint's content fails a check: lost, cut short, changed, or never right. Another one may be sound."""


@dataclass(frozen=True)
class ListedFile:
    """What files.json says of one file."""

    size_bytes: int
    checksum: str | None
    """xxh3_128 as 32 hexadecimal digits; None in a checkpoint of format 1."""


class FileList:
    """The files of the checkpoint in `directory`, as its files.json names them.

    Raises:
        DamagedCheckpoint: files.json is missing, or any bit of it has changed.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        path = directory / FILES_FILE
        raw = _read_bytes(path)
        content = _parse(path, raw)
        sizes = content.get("files")
        if not isinstance(sizes, dict):
            raise DamagedCheckpoint(f"{path}: files is no object; {_ADVICE}")
        self.has_checksums = content.keys() != {"files"} or not all(type(size) is int for size in sizes.values())
        if self.has_checksums:
            self._files = {name: _listed(path, name, entry) for name, entry in sizes.items()}
            # One comparison for all of it: the entries, their order, white space, and the checksum itself.
            if raw != _encode(_file_list_text(self._files)):
                raise DamagedCheckpoint(f"{path}: damaged, does not fit its own checksum; {_ADVICE}")
        else:
            self._files = {name: ListedFile(size, None) for name, size in sizes.items()}
        for name in self._files:
            if not name or not name.isprintable() or Path(name).name != name:
                raise DamagedCheckpoint(f"{path}: files: {shorten(name)} is no file beside it; {_ADVICE}")

    def __getitem__(self, name: str) -> ListedFile:
        """Raises DamagedCheckpoint where the list has no such file."""
        if name not in self._files:
            raise DamagedCheckpoint(f"{self.directory / FILES_FILE}: does not list {name}; {_ADVICE}")
        return self._files[name]

    def __contains__(self, name: str) -> bool:
        return name in self._files

    def __iter__(self) -> Iterator[str]:
        return iter(self._files)

    def check_sizes(self) -> None:
        """Compare the directory with the list.

        Raises:
            DamagedCheckpoint: names the files that are missing or of another size.
        """
        found = []
        for name, listed in self._files.items():
            path = self.directory / name
            try:
                size_bytes = path.stat().st_size
            except OSError as error:
                found.append(f"{path}: {'missing' if isinstance(error, FileNotFoundError) else error.strerror}")
                continue
            if size_bytes != listed.size_bytes:
                found.append(f"{path}: {size_bytes} bytes, written were {listed.size_bytes}")
        if found:
            more = f" and {len(found) - 3} more" if len(found) > 3 else ""
            raise DamagedCheckpoint(f"{'; '.join(found[:3])}{more}; {_ADVICE}")

    def read_json(self, name: str) -> dict[str, Any]:
        """The content of a JSON file of the checkpoint, once its bytes are known to be those that were written.

        Raises:
            DamagedCheckpoint: it is missing, changed, or no JSON object.
        """
        path = self.directory / name
        raw = _read_bytes(path)
        check_bytes(path, raw, self[name].checksum)
        return _parse(path, raw)


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a file that no list covers.

    Raises:
        ValueError: the file is missing or broken.
    """
    return _parse(path, _read_bytes(path))


def check_bytes(path: Path, content: bytes, checksum: str | None, what: str = "") -> None:
    """Compare what was read from `path` with the checksum of what was written; `what` says which part it is.

    Raises:
        DamagedCheckpoint: they differ.
    """
    if checksum is not None:
        check_digest(path, xxhash.xxh3_128_hexdigest(content), checksum, what)


def check_digest(path: Path, found: str, checksum: str | None, what: str = "") -> None:
    """As `check_bytes`, of bytes whose checksum is `found`."""
    if checksum is not None and found != checksum:
        raise DamagedCheckpoint(f"{path}: {what}damaged, not the bytes that were written; {_ADVICE}")


def write_file_list(directory: Path, checksums: Mapping[str, str]) -> None:
    """Write files.json for all that lies in `directory`; files without an entry in `checksums` are read for theirs."""
    files = {
        path.name: ListedFile(path.stat().st_size, checksums.get(path.name) or file_checksum(path))
        for path in sorted(directory.iterdir())
        if path.name != FILES_FILE
    }
    write_text(directory / FILES_FILE, _file_list_text(files))


def file_checksum(path: Path) -> str:
    """xxh3_128 of a whole file, read in pieces."""
    digest = xxhash.xxh3_128()
    with open(path, "rb", buffering=0) as file:
        while piece := file.read(_PIECE_BYTES):
            digest.update(piece)
    return digest.hexdigest()


def to_json(name: str, content: Mapping[str, Any]) -> str:
    """The text of file `name`.

    Raises:
        ValueError: `content` holds something JSON has not.
    """
    try:
        return json.dumps(content, indent=1, ensure_ascii=False, allow_nan=False) + "\n"
    except (TypeError, ValueError) as error:
        raise ValueError(f"{name}: not JSON ({error}); give numbers, strings, lists and dicts only") from None


def write_text(path: Path, text: str) -> None:
    """Write and fsync."""
    with open(path, "w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())


def fsync(path: Path) -> None:
    """Bring a file, or the names in a directory, to disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def field(content: Mapping[str, Any], name: str, kind: type, where: str) -> Any:
    """`content[name]`, which must be a `kind`; an int is one that JSON's readers agree on, and not negative.

    Raises:
        DamagedCheckpoint: names the field, after `where`: its file, and the object that it belongs to.
    """
    if name not in content:
        raise DamagedCheckpoint(f"{where}{name} is missing; {_ADVICE}")
    return check_kind(content[name], name, kind, where)


def check_kind(value: Any, name: str, kind: type, where: str) -> Any:
    """`value`, which is called `name`; as `field`."""
    if type(value) is not kind or (isinstance(value, int) and not 0 <= value <= MAX_INTEGER):
        raise DamagedCheckpoint(f"{where}{name} is {shorten(value)}, not {_KINDS[kind]}; {_ADVICE}")
    return value


_KINDS = {int: "a count", str: "a string", dict: "an object", list: "a list", bool: "true or false"}


def shorten(value: Any) -> str:
    """A value for a message: not a page of it."""
    kind = type(value)
    if kind in (dict, list):
        return "an object" if kind is dict else "a list"
    text = repr(value) if kind is not int or abs(value) <= MAX_INTEGER else "a huge number"
    return text if len(text) <= 60 else text[:57] + "…"


def _read_bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except FileNotFoundError:
        raise DamagedCheckpoint(f"{path}: missing; the checkpoint is not complete, use another one") from None
    except OSError as error:
        raise DamagedCheckpoint(f"{path}: cannot be read ({error.strerror}); {_ADVICE}") from None


def _parse(path: Path, raw: bytes) -> dict[str, Any]:
    try:
        content = json.loads(raw.decode("utf-8"))
    except RecursionError:
        raise DamagedCheckpoint(f"{path}: broken (nested too deeply); {_ADVICE}") from None
    except ValueError as error:  # also of bytes that are no UTF-8, and of numbers with thousands of digits
        raise DamagedCheckpoint(f"{path}: broken ({error}); {_ADVICE}") from None
    if not isinstance(content, dict):
        raise DamagedCheckpoint(f"{path}: not a JSON object; {_ADVICE}")
    return content


def _listed(path: Path, name: str, entry: Any) -> ListedFile:
    where = f"{path}: files: {shorten(name)}: "
    if not isinstance(entry, dict):
        raise DamagedCheckpoint(f"{where}{shorten(entry)} is no object; {_ADVICE}")
    return ListedFile(field(entry, "bytes", int, where), field(entry, "checksum", str, where))


def _file_list_text(files: Mapping[str, ListedFile]) -> str:
    entries = {name: {"bytes": listed.size_bytes, "checksum": listed.checksum} for name, listed in files.items()}
    checksum = xxhash.xxh3_128_hexdigest(_encode(to_json(FILES_FILE, {"files": entries})))
    return to_json(FILES_FILE, {"checksum": checksum, "files": entries})


def _encode(text: str) -> bytes:
    """As UTF-8; JSON can name halves of characters, which have no such form."""
    return text.encode("utf-8", errors="surrogatepass")
