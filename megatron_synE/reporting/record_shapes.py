"""What a record of metrics.jsonl must look like. A flipped bit may leave JSON, and a crafted file anything."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

LARGEST_NUMBER = 1e300
"""Sums and differences of such are numbers, too."""

Check = Callable[[Any], bool]


def is_number(value: object) -> bool:
    """Whether it is a finite number of a size to reckon with. JSON has no nan: null stands for it."""
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= LARGEST_NUMBER


def is_whole(record: Any) -> bool:
    """Whether it is a record as the trainer writes them. Kinds and fields of a later version are let pass."""
    if not isinstance(record, dict) or not _is_text(record.get("kind")):
        return False
    required = {**PLACE, **REQUIRED.get(record["kind"], {})}
    optional = {**PLACE_OPTIONAL, **OPTIONAL.get(record["kind"], {})}
    return all(name in record and check(record[name]) for name, check in required.items()) and all(
        check(record[name]) for name, check in optional.items() if record.get(name) is not None
    )


def _is_count(value: Any) -> bool:
    return type(value) is int and 0 <= value < 2**62


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


def _is_flag(value: Any) -> bool:
    return isinstance(value, bool)


def _is_float(value: Any) -> bool:
    """Also one that is too large to reckon with, or null."""
    return value is None or (type(value) in (int, float) and math.isfinite(value) and abs(value) < 2**1023)


def _is_object(value: Any) -> bool:
    return isinstance(value, dict)


def _objects_of(check: Check) -> Check:
    return lambda value: isinstance(value, dict) and all(map(check, value.values()))


def _lists_of(check: Check) -> Check:
    return lambda value: isinstance(value, list) and all(map(check, value))


def _has(fields: Mapping[str, Check]) -> Check:
    return lambda value: isinstance(value, dict) and all(name in value and fields[name](value[name]) for name in fields)


def _is_pair(value: Any) -> bool:
    return isinstance(value, list) and len(value) == 2


NUMBERS = _objects_of(_is_float)
PLACE: dict[str, Check] = {"step": _is_count, "consumed_tokens": _is_count}
PLACE_OPTIONAL: dict[str, Check] = {"time": lambda value: is_number(value) and 0 <= value < 2**36}
REQUIRED: dict[str, dict[str, Check]] = {
    "start": {
        "config": _is_object, "versions": _objects_of(_is_text), "arguments": _lists_of(_is_text),
        "components": _lists_of(_has({"name": _is_text, "identity": _is_text, "num_tokens": _is_count})),
    },
    "evaluation": {"loss": NUMBERS},
    "benchmark": {"benchmarks": _objects_of(NUMBERS)},
    "decision": {
        "at_tokens": _is_count, "changed": _is_flag, "inputs": _objects_of(NUMBERS),
        **dict.fromkeys(("perplexity", "shares_before", "shares_after"), NUMBERS),
    },
    "configuration": {"changes": _objects_of(_is_pair)},
    "forgetting": {
        **dict.fromkeys(("what", "reaction"), _is_text), **dict.fromkeys(("baseline", "value", "bound"), _is_float),
    },
}  # fmt: skip
"""Kind of record → fields without which it is damaged."""
OPTIONAL: dict[str, dict[str, Check]] = {
    "step": {
        "loss_by_component": NUMBERS, "shares": NUMBERS, "updated": _is_flag,
        **dict.fromkeys(
            ("loss", "grad_norm", "learning_rate", "tokens_per_second", "tflops_per_device", "mfu", "step_seconds",
             "data_seconds", "peak_memory_gib", "global_batch_size"), _is_float,
        ),
    },
    "start": {
        **dict.fromkeys(("program", "directory", "device", "host", "platform", "commit"), _is_text),
        **dict.fromkeys(
            ("num_processes", "processes_per_node", "num_processors", "num_parameters", "seq_length", "num_samples",
             "last_step"), _is_count,
        ),
    },
    "stop": {"reason": _is_text, "error": _is_text},
    "evaluation": {"mean_loss": _is_float, "mixture_loss": _is_float},
    "checkpoint": {"seconds": _is_float},
    "incident": {
        "cause": _is_text, "action": _is_text, "resumed_from_step": _is_count,
        "documents": _lists_of(_has({"documents": _lists_of(_is_count)})),
    },
    "decision": {"moves": _is_text},
    "forgetting": {"reason": _is_text, "baseline_step": _is_count},
}  # fmt: skip
"""Kind of record → fields that are of this form where they are there."""
