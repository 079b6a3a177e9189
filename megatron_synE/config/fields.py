"""Mistakes in what a user wrote for a configuration, told by the user's own name for the place.

jsonargparse finds a value of a wrong type, but names it by class paths; and passes over null, and over a section that
no field has.
"""

from __future__ import annotations

import dataclasses
import difflib
import types
import typing
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal, Union

import yaml

SHOWN = 12


def misplaced(content: Any, kind: Any) -> list[str]:
    """What a parsed YAML file says in places where the dataclass `kind` has none, or says by null or a wrong name.

    A key that no field has is told with the nearest that one has.
    """
    found = []
    for place, value, own in _objects(content, kind):
        names = [field.name for field in dataclasses.fields(own)]
        found += [_unknown(place, key, names, kind) for key in value if key not in names]
    for place, value, own in _everything(content, kind):
        if value is None and _mismatch(None, own):
            found.append(f"{place}: null is not {_mismatch(None, own)}; leave the line out for the default")
        if isinstance(value, Mapping) and typing.get_origin(_without_none(own)) is dict:
            found += [f"{place}.{name}: a name is text; write '{name}'" for name in value if not isinstance(name, str)]
    return found


def missing(content: Any, kind: Any) -> list[str]:
    """Fields without a default that a parsed YAML file does not give."""
    found = []
    for place, value, own in _objects(content, kind):
        for field in dataclasses.fields(own):
            has_default = (field.default, field.default_factory) != (dataclasses.MISSING, dataclasses.MISSING)
            if field.name not in value and not has_default:
                found.append(f"{place}.{field.name}: missing; give it".removeprefix("."))
    return found


def unknown_option(option: str, kind: Any, others: Sequence[str]) -> str | None:
    """What is wrong with the name of a command-line option `--section.field`, None where it is a field's.

    Args:
        others: options that are no fields.
    """
    place, own = "", kind
    parts = option.removeprefix("--").removesuffix("+").split(".")
    for part in parts:
        own = _without_none(own)
        if typing.get_origin(own) is dict:
            own = typing.get_args(own)[1]
        elif dataclasses.is_dataclass(own):
            fields = _types(own)
            if part not in fields:
                own_options = [other.removeprefix("--") for other in others]
                return _unknown(place, part, [*fields], kind, own_options, prefix="--")
            own = fields[part]
        else:
            return f"{option}: {place} has no fields; give its value as --{place}"
        place = f"{place}.{part}" if place else part
    return None


def wrong_values(content: Any, kind: Any, where: str = "") -> list[str]:
    """Values of a parsed YAML file that are not of their field's type."""
    kind = _without_none(kind) if content is not None else kind
    if not _mismatch(content, kind):
        return []
    children = list(_children(content, kind, where))
    if not children:
        return [f"{where}: {_shown(content)} is not {_mismatch(content, kind)}"]
    found = [problem for place, value, own in children for problem in wrong_values(value, own, place)]
    return found or [f"{where}: {_shown(content)} is not {_mismatch(content, kind)}"]


def read_yaml(text: str) -> Any:
    """The content of a YAML file, in which no key is given twice.

    Raises:
        ValueError: it is no YAML, or a key is there twice: only the last would count.
    """
    try:
        return yaml.load(text, Loader=_StrictLoader)
    except yaml.YAMLError as error:
        raise ValueError(f"not YAML: {' '.join(str(error).split())}") from None


class _StrictLoader(yaml.SafeLoader):
    """SafeLoader that refuses a key given twice."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[Any] = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            if key in seen:
                raise ValueError(f"line {key_node.start_mark.line + 1}: {key} is given twice; keep one of them")
            seen.add(key)
        return super().construct_mapping(node, deep)


def _unknown(
    place: str, name: Any, names: Sequence[str], whole: Any, others: Sequence[str] = (), prefix: str = ""
) -> str:
    """The message about a name that is no field, at `place` of `whole`."""
    told = f"{prefix}{place}.{name}" if place else f"{prefix}{name}"
    candidates = [*names, *([] if place else others)]
    near = difflib.get_close_matches(str(name), candidates, n=1)
    elsewhere = [path for path in _paths(whole) if path.split(".")[-1] == name]
    if near:
        return f"{told}: unknown; did you mean {prefix}{f'{place}.' if place else ''}{near[0]}?"
    if elsewhere:
        return f"{told}: unknown; did you mean {' or '.join(prefix + path for path in elsewhere[:3])}?"
    listed = ", ".join(names[:SHOWN]) + (" …" if len(names) > SHOWN else "")
    return f"{told}: unknown; {place or 'the configuration'} has {listed}"


def _paths(kind: Any, place: str = "") -> Iterator[str]:
    """Dotted names of all fields that have a name of their own."""
    for name, own in _types(kind).items():
        path = f"{place}.{name}" if place else name
        yield path
        if dataclasses.is_dataclass(own):
            yield from _paths(own, path)


def _objects(content: Any, kind: Any) -> Iterator[tuple[str, Mapping[Any, Any], Any]]:
    """Every mapping in `content` that stands for a dataclass: its place, itself, the dataclass."""
    for place, value, own in _everything(content, kind):
        if dataclasses.is_dataclass(_without_none(own)) and isinstance(value, Mapping):
            yield place, value, _without_none(own)


def _everything(content: Any, kind: Any, where: str = "") -> Iterator[tuple[str, Any, Any]]:
    """Place, value and type of `content` and of all that lies in it."""
    yield where, content, kind
    for place, value, own in _children(content, _without_none(kind), where):
        yield from _everything(value, own, place)


def _children(content: Any, kind: Any, where: str) -> Iterator[tuple[str, Any, Any]]:
    """Place, value and type of what lies directly in `content`."""
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if isinstance(content, Mapping) and dataclasses.is_dataclass(kind):
        own = _types(kind)
        for name, value in content.items():
            if name in own:
                yield f"{where}.{name}" if where else str(name), value, own[name]
    elif isinstance(content, Mapping) and origin is dict:
        for name, value in content.items():
            yield f"{where}.{name}", value, arguments[1]
    elif isinstance(content, list) and origin is list:
        for number, value in enumerate(content):
            named = isinstance(value, Mapping) and isinstance(value.get("name"), str)
            yield f"{where}.{value['name']}" if named else f"{where}[{number}]", value, arguments[0]


def _mismatch(content: Any, kind: Any) -> str:
    """What `content` should be; empty where it is of this type."""
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if kind is Any:
        return ""
    if origin in (Union, types.UnionType):
        wanted = [_mismatch(content, own) for own in arguments]
        return "" if "" in wanted else " or ".join(dict.fromkeys(wanted))
    if origin is Literal:
        near = difflib.get_close_matches(str(content), [str(value) for value in arguments], n=1)
        hint = f"; did you mean {near[0]}?" if near else ""
        return "" if content in arguments else f"one of {', '.join(map(str, arguments))}{hint}"
    if dataclasses.is_dataclass(kind) or origin is dict:
        inside = all(not _mismatch(value, own) for _, value, own in _children(content, kind, ""))
        return "" if isinstance(content, Mapping) and inside else "a mapping of names to values"
    if origin is list:
        inside = all(not _mismatch(value, own) for _, value, own in _children(content, kind, ""))
        return "" if isinstance(content, list) and inside else "a list"
    if origin is tuple:
        fits = isinstance(content, list | tuple) and len(content) == len(arguments)
        fits = fits and not any(_mismatch(value, own) for value, own in zip(content, arguments, strict=True))
        return "" if fits else f"a list of {len(arguments)} values"
    if kind is type(None):
        return "" if content is None else "null"
    if _is_scalar(content, kind):
        return ""
    if kind is int and _is_scalar(content, float) and float(content).is_integer():
        return f"a whole number as it is written here; write {int(float(content))}"
    return {int: "a whole number", float: "a number", str: "text", bool: "true or false"}[kind]


def _is_scalar(content: Any, kind: Any) -> bool:
    """Whether jsonargparse makes a value of this type of it."""
    if kind in (int, float) and isinstance(content, str):
        try:
            kind(content)
        except ValueError:
            return False
        return True
    if kind is float:
        return isinstance(content, int | float) and not isinstance(content, bool)
    if kind is int:
        return isinstance(content, int) and not isinstance(content, bool)
    return isinstance(content, kind)


def _without_none(kind: Any) -> Any:
    """The one type beside None, where there is one."""
    if typing.get_origin(kind) in (Union, types.UnionType):
        others = [own for own in typing.get_args(kind) if own is not type(None)]
        return others[0] if len(others) == 1 else kind
    return kind


def _types(kind: Any) -> dict[str, Any]:
    """Field → type of a dataclass."""
    hints = typing.get_type_hints(kind)
    return {field.name: hints[field.name] for field in dataclasses.fields(kind)}


def _shown(content: Any) -> str:
    text = repr(content)
    return text if len(text) <= 60 else text[:57] + "…"
