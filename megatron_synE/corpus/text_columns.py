"""Columns of text as Arrow holds them: checked, and made of what inputs hold."""

import json
from collections.abc import Iterable
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow
import pyarrow.compute

NEVER_BLANK = np.zeros(256, dtype=bool)
NEVER_BLANK[0x21:0x7F] = True
NEVER_BLANK[0xE4:0xEA] = True  # U+4000 to U+9FFF
"""Bytes that begin a character, in UTF-8, that is no white space; of other characters Python is asked."""
WHITE = np.zeros(256, dtype=bool)
WHITE[[0x09, 0x0A, 0x0B, 0x0C, 0x0D, 0x1C, 0x1D, 0x1E, 0x1F, 0x20]] = True
"""What Python counts as white space in ASCII."""
MAX_INDENT_BYTES = 64


def missing_and_blank(column: pyarrow.LargeStringArray) -> tuple[npt.NDArray[np.bool_], npt.NDArray[np.bool_]]:
    """Masks [documents] of null and of white-space-only texts."""
    missing = column.is_null().to_numpy(zero_copy_only=False)
    offsets, data = string_buffers(column)
    blank = np.diff(offsets) == 0
    white_so_far, others = np.flatnonzero(~blank), []
    for place in range(MAX_INDENT_BYTES):  # all texts at once, a byte at a time: many begin with a few spaces
        ended = offsets[white_so_far] + place == offsets[white_so_far + 1]
        blank[white_so_far[ended]] = True
        white_so_far = white_so_far[~ended]
        byte = data[offsets[white_so_far] + place]
        others.append(white_so_far[~WHITE[byte] & ~NEVER_BLANK[byte]])
        white_so_far = white_so_far[WHITE[byte]]
        if not len(white_so_far):
            break
    for i in np.concatenate([*others, white_so_far]):
        blank[i] = bytes(data[offsets[i] : offsets[i + 1]]).decode().isspace()
    return missing, blank & ~missing


def string_buffers(column: pyarrow.LargeStringArray) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.uint8]]:
    """The (offsets [documents + 1], UTF-8 bytes) of a column, without a copy."""
    _, offsets, data = column.buffers()
    if offsets is None or not len(column):
        return np.zeros(1, np.int64), np.empty(0, np.uint8)
    ends = np.frombuffer(offsets, np.int64)[column.offset : column.offset + len(column) + 1]
    return ends, np.frombuffer(data, np.uint8) if data is not None else np.empty(0, np.uint8)


def is_utf8(data: bytes) -> bool:
    """Whether bytes are UTF-8, some ten times faster than to decode them."""
    offsets = pyarrow.py_buffer(np.array([0, len(data)], np.int64))
    try:
        pyarrow.LargeStringArray.from_buffers(1, offsets, pyarrow.py_buffer(data)).validate(full=True)
    except pyarrow.ArrowInvalid:
        return False
    return True


def as_strings(values: Iterable[Any]) -> pyarrow.StringArray:
    """Kept values: strings as they are, all else as JSON; what UTF-8 cannot encode is replaced."""
    texts = [
        value if value is None or isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)
        for value in values
    ]
    try:
        return pyarrow.array(texts, pyarrow.string())
    except UnicodeEncodeError:
        safe = [text and text.encode("utf-8", "replace").decode() for text in texts]
        return pyarrow.array(safe, pyarrow.string())


def is_encodable(text: str) -> bool:
    """Whether UTF-8 can hold it: a lone surrogate it cannot."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


def utf8_column(column: pyarrow.Array) -> tuple[pyarrow.LargeStringArray | None, npt.NDArray[np.bool_]]:
    """A column as strings, and a mask [rows] of what is not UTF-8 (null then); None where it does not hold strings."""
    undecodable = np.zeros(len(column), dtype=bool)
    if pyarrow.types.is_null(column.type):
        return column.cast(pyarrow.large_string()), undecodable
    raw = _binary(column)
    if raw is None:
        return None, undecodable
    try:
        return raw.cast(pyarrow.large_string()), undecodable  # checks that it is UTF-8
    except pyarrow.ArrowInvalid:
        undecodable[:] = [not _decodes(value.as_py() or b"") for value in raw]
        blank = pyarrow.nulls(len(raw), raw.type)
        return pyarrow.compute.if_else(undecodable, blank, raw).cast(pyarrow.large_string()), undecodable


def kept_column(column: pyarrow.Array) -> pyarrow.StringArray:
    """A column of a file as strings: times and the like as Python writes them, numbers and structures as JSON."""
    if pyarrow.types.is_integer(column.type):
        return column.cast(pyarrow.string())
    raw = _binary(column)
    if raw is None:
        json_types = bool | int | float | list | dict | None
        return as_strings(value if isinstance(value, json_types) else str(value) for value in column.to_pylist())
    try:
        return raw.cast(pyarrow.large_string()).cast(pyarrow.string())
    except pyarrow.ArrowInvalid:
        return as_strings(value and value.decode(errors="replace") for value in raw.to_pylist())


def _binary(column: pyarrow.Array) -> pyarrow.LargeBinaryArray | None:
    """The bytes of a column that holds text, whether it is declared so or not; None for other columns."""
    if pyarrow.types.is_dictionary(column.type):
        column = column.dictionary_decode()
    names = {"string", "large_string", "string_view", "binary", "large_binary", "binary_view"}
    return column.cast(pyarrow.large_binary()) if str(column.type) in names else None


def _decodes(value: bytes) -> bool:
    try:
        value.decode()
    except UnicodeDecodeError:
        return False
    return True
