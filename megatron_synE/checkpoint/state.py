"""state.json: what a checkpoint says of its model, its layout and its step, checked field by field. Needs no torch."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from megatron_synE.checkpoint.files import DamagedCheckpoint, field, shorten
from megatron_synE.config.model import LlamaArchitecture, RopeScaling

FORMAT_VERSION = 2
"""1 had no checksums; it is still read."""
_READABLE_VERSIONS = (1, FORMAT_VERSION)
_MAX_FLOAT = 1e30
_MAX_SIZE = 2**31 - 1
"""No model has more layers, channels or tokens; torch refuses them in many ways."""


def check_state(path: Path, state: dict[str, Any]) -> dict[str, Any]:
    """`state`, the content of `path`, once the fields that every checkpoint has are what they must be.

    Raises:
        ValueError: a format this version does not know.
        DamagedCheckpoint: names the field.
    """
    version = state.get("format_version")
    if type(version) is not int or version not in _READABLE_VERSIONS:
        raise ValueError(
            f"{path}: format_version is {shorten(version)}, this megatron_synE reads 1 to {FORMAT_VERSION}; "
            "use the version that wrote the checkpoint"
        )
    where = f"{path}: "
    field(state, "step", int, where)
    field(state, "architecture", dict, where)
    layout = field(state, "layout", dict, where)
    for name in layout:
        field(layout, name, int, f"{where}layout: ")
    if field(state, "has_optimizer", bool, where):
        field(state, "optimizer_step", int, where)
    return state


def architecture_of(path: Path, state: dict[str, Any]) -> LlamaArchitecture:
    """The model's sizes in `state`, the content of `path`.

    Raises:
        DamagedCheckpoint: a field is missing, unknown, of another type, or a model that cannot be built.
    """
    where = f"{path}: architecture: "
    fields = dict(state["architecture"])
    scaling = fields.pop("rope_scaling", None)
    if scaling is not None and not isinstance(scaling, dict):
        raise DamagedCheckpoint(f"{where}rope_scaling is {shorten(scaling)}, not an object; use another checkpoint")
    architecture = LlamaArchitecture(
        **_typed(LlamaArchitecture, fields, where),
        rope_scaling=None if scaling is None else RopeScaling(**_typed(RopeScaling, scaling, f"{where}rope_scaling: ")),
    )
    problems = architecture.problems()
    if problems:
        raise DamagedCheckpoint(f"{where}{'; '.join(problems)}; the checkpoint is damaged, use another one")
    return architecture


def _typed(kind: type, values: dict[str, Any], where: str) -> dict[str, Any]:
    """The fields of a dataclass of numbers, each of the annotated type."""
    known = {entry.name: entry for entry in dataclasses.fields(kind)}
    unknown = values.keys() - known.keys()
    if unknown:
        raise DamagedCheckpoint(f"{where}{shorten(min(unknown))} is unknown; use another checkpoint")
    for name, entry in known.items():
        if name in values:
            if not _fits(values[name], str(entry.type)):
                raise DamagedCheckpoint(
                    f"{where}{name} is {shorten(values[name])}, not {entry.type} of a sensible size; "
                    "use another checkpoint"
                )
        elif entry.default is dataclasses.MISSING:
            raise DamagedCheckpoint(f"{where}{name} is missing; use another checkpoint")
    return values


def _fits(value: Any, annotation: str) -> bool:
    allowed = annotation.split(" | ")
    if value is None or type(value) is bool:
        return ("None" if value is None else "bool") in allowed
    if type(value) is int and "int" in allowed:
        return 0 < value <= _MAX_SIZE
    return "float" in allowed and type(value) in (int, float) and 0 < value < _MAX_FLOAT
