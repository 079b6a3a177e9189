"""JSON that may be damaged or crafted, read field by field: a ValueError names the file and the field that is wrong."""

from __future__ import annotations

import json
import math
import reprlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

MAX_INTEGER = 2**62


class JsonFields:
    """The fields of one JSON object. Every method raises ValueError where a field is missing or not of its type.

    Args:
        content: what was parsed.
        where: stands before a field's name in messages: a file and a colon, or `segments[3].`.
        remedy: ends the messages.
    """

    def __init__(self, content: object, where: str, remedy: str) -> None:
        self.where, self.remedy = where, remedy
        if not isinstance(content, dict):
            raise ValueError(f"{where.rstrip('.: ')}: not a JSON object but {reprlib.repr(content)}; {remedy}")
        for name in content:
            if not is_text(name):
                raise ValueError(f"{where}{name!r} is not the name of a field; {remedy}")
        self.content: dict[str, Any] = content

    @classmethod
    def of_file(cls, path: Path, remedy: str) -> JsonFields:
        """The object in a file. FileNotFoundError where there is none."""
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            raise
        except (OSError, ValueError, RecursionError) as error:
            raise ValueError(f"{path}: cannot be read ({error}); {remedy}") from error
        return cls(content, f"{path}: ", remedy)

    def has(self, name: str) -> bool:
        """Whether there is a value other than null."""
        return self.content.get(name) is not None

    def integer(self, name: str, low: int = 0, high: int = MAX_INTEGER) -> int:
        """An integer in [low, high]."""
        return self._checked(name, self._value(name), is_integer(low, high), f"an integer of {low} to {high}")

    def text(self, name: str) -> str:
        """A string."""
        return self._checked(name, self._value(name), is_text, "a string")

    def number(self, name: str) -> float:
        """A finite number."""
        return float(self._checked(name, self._value(name), is_finite, "a finite number"))

    def flag(self, name: str) -> bool:
        """True or false."""
        return self._checked(name, self._value(name), lambda value: isinstance(value, bool), "true or false")

    def integers(self, name: str, low: int = 0, high: int = MAX_INTEGER) -> list[int]:
        """A list of integers in [low, high]."""
        return self._list(name, is_integer(low, high), f"integers of {low} to {high}")

    def texts(self, name: str) -> list[str]:
        """A list of strings."""
        return self._list(name, is_text, "strings")

    def texts_by_name(self, name: str, allowed: Callable[[str], bool], wanted: str) -> dict[str, str]:
        """An object of strings that are `allowed`."""
        inner = self.inner(name)
        for key, value in inner.content.items():
            inner._checked(key, value, lambda value: is_text(value) and allowed(value), wanted)
        return dict(inner.content)

    def numbers_by_name(self, name: str) -> dict[str, float]:
        """An object of finite numbers."""
        inner = self.inner(name)
        for key, value in inner.content.items():
            inner._checked(key, value, is_finite, "a finite number")
        return {key: float(value) for key, value in inner.content.items()}

    def inner(self, name: str) -> JsonFields:
        """The object in a field."""
        return JsonFields(self._value(name), f"{self.where}{name}.", self.remedy)

    def inner_list(self, name: str) -> list[JsonFields]:
        """The objects in a list."""
        values = self._list(name, lambda value: True, "")
        return [JsonFields(value, f"{self.where}{name}[{n}].", self.remedy) for n, value in enumerate(values)]

    def wrong(self, name: str, what: str) -> ValueError:
        """The error that a field is something else than it should be."""
        return ValueError(f"{self.where}{name} {what}; {self.remedy}")

    def _value(self, name: str) -> Any:
        if name not in self.content:
            raise self.wrong(name, "is missing")
        return self.content[name]

    def _checked(self, name: str, value: Any, holds: Callable[[Any], bool], wanted: str) -> Any:
        if not holds(value):
            raise self.wrong(name, f"is {reprlib.repr(value)}, not {wanted}")
        return value

    def _list(self, name: str, holds: Callable[[Any], bool], wanted: str) -> list[Any]:
        values = self._checked(name, self._value(name), lambda value: isinstance(value, list), "a list")
        for number, value in enumerate(values):
            self._checked(f"{name}[{number}]", value, holds, wanted)
        return list(values)


def is_integer(low: int, high: int) -> Callable[[Any], bool]:
    """Whether a value is an integer in [low, high]; true and false are not."""
    return lambda value: isinstance(value, int) and not isinstance(value, bool) and low <= value <= high


def is_text(value: Any) -> bool:
    """Whether a value is a string that can be written: JSON's escapes can name half of a character."""
    return isinstance(value, str) and not any("\ud800" <= letter <= "\udfff" for letter in value)


def is_finite(value: Any) -> bool:
    """Whether a value is a number that a float holds."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    return abs(value) <= 2**1023 if isinstance(value, int) else math.isfinite(value)
