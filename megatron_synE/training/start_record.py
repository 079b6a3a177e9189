"""What metrics.jsonl keeps of a start: all that is needed to say what ran where, and to do it again."""

from __future__ import annotations

import dataclasses
import os
import sys
from collections.abc import Sequence
from typing import Any

from megatron_synE.runtime import device_name
from megatron_synE.runtime.software import commit, machine, versions
from megatron_synE.training.run import TrainingRun


def start_record(run: TrainingRun, arguments: Sequence[str]) -> dict[str, Any]:
    """A record of kind `start`, as JSON.

    | field | what it says |
    | --- | --- |
    | `program`, `arguments`, `directory` | the command line, and the folder that its relative paths begin at |
    | `num_processes`, `processes_per_node` | as torchrun was told |
    | `device`, `host`, `platform`, `num_processors` | of the main process |
    | `versions`, `commit` | software; the commit of this package, null where it is installed |
    | `architecture`, `num_parameters` | of the model |
    | `seq_length`, `num_samples`, `last_step` | of the whole run as it is planned now |
    | `components` | name, identity (a hash of what determines its documents) and tokens of an epoch |
    | `config` | every field of the configuration |
    """
    stream, world_size = run.state.stream, run.runtime.world_size
    return {
        "program": sys.argv[0],
        "arguments": list(arguments),
        "directory": os.getcwd(),
        "num_processes": world_size,
        "processes_per_node": int(os.environ.get("LOCAL_WORLD_SIZE", world_size)),
        "device": device_name(run.runtime.device),
        **machine(),
        "versions": versions(),
        "commit": commit(),
        "architecture": dataclasses.asdict(run.architecture),
        "num_parameters": run.architecture.num_parameters(),
        "seq_length": stream.seq_length,
        "num_samples": stream.num_samples,
        "last_step": run.last_step,
        "components": [
            {"name": component.name, "identity": component.identity, "num_tokens": component.num_tokens}
            for component in stream.components
        ],
        "config": run.job_json,
    }
