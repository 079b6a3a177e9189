"""What the running configuration has that the checkpoint's had not."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from typing import Any

from megatron_synE.config.job import JobConfig
from megatron_synE.config.leaves import leaves

OF_ONE_PROCESS = frozenset({"training.exit_after_steps"})
"""Fields that say how long this start works, and nothing about the run."""
WITHOUT_EFFECT = {
    "training.seed": "weights and generators are the checkpoint's",
    "checkpoint.load": "the run has its own checkpoint",
    "checkpoint.init_from_hf": "the run has its own checkpoint",
}


def as_json(job: JobConfig) -> dict[str, Any]:
    """The configuration as it comes back from a checkpoint's state.json: tuples are lists."""
    return dict(json.loads(json.dumps(dataclasses.asdict(job))))


def config_changes(before: Mapping[str, Any], after: Mapping[str, Any]) -> dict[str, list[Any]]:
    """Field → its value in the checkpoint's configuration and in the running one, of those that differ.

    A field that the checkpoint does not know, being of an older version, had its default then.
    """
    old, new = dict(leaves(before)), dict(leaves(after))
    defaults = dict(leaves(as_json(JobConfig())))
    names = [*new, *(name for name in old if name not in new)]
    values = {name: [old.get(name, defaults.get(name)), new.get(name)] for name in names if name not in OF_ONE_PROCESS}
    return {name: [was, now] for name, (was, now) in values.items() if was != now}


def describe(changes: Mapping[str, list[Any]]) -> list[str]:
    """One line for each field."""
    return [
        f"changed since the checkpoint: {name}  {json.dumps(was, ensure_ascii=False)} → "
        f"{json.dumps(now, ensure_ascii=False)}"
        + (f" (without effect: {WITHOUT_EFFECT[name]})" if name in WITHOUT_EFFECT else "")
        for name, (was, now) in changes.items()
    ]
