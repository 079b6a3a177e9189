"""What determined the results of an evaluation: enough to say whether two can be compared, and to do one again."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from megatron_synE.evaluation.tasks.task_files import LoadedTasks
from megatron_synE.runtime.software import commit, machine, versions

FORMAT = 1


def make_manifest(
    *, settings: Mapping[str, Any], identity: Mapping[str, Any], tasks: LoadedTasks, prompts: Mapping[str, Any],
    notes: Sequence[str], command: Sequence[str], seconds: float,
) -> dict[str, Any]:  # fmt: skip
    """The content of manifest.json.

    | field | what it says |
    | --- | --- |
    | `settings` | tasks, limit, seed, whether code is run |
    | `model`, `generator` | what scored, and what continued prompts where it was another: fingerprint, dtype, layout |
    | `tokenizer`, `bos`, `bos_id` | name and fingerprint; the policy in words, and the token's id or null |
    | `templates`, `data`, `examples` | SHA-256 of each task file, of each data file and of each few-shot example |
    | `prompts` | of each benchmark the first items: text and token ids |
    | `notes` | what was told about the requests |
    | `code`, `machine` | versions, git commit, SHA-256 of this package's evaluation; host |
    | `command`, `seconds` | the command line, and what its last start took |

    Args:
        identity: model, generator, tokenizer and BOS policy.
    """
    return {
        "format": FORMAT,
        "settings": settings,
        **identity,
        "templates": tasks.templates,
        "data": tasks.data_files,
        "examples": tasks.examples,
        "prompts": prompts,
        "notes": [*tasks.notices, *notes],
        "code": {"versions": versions(("lm_eval", "gigatoken")), "commit": commit(), "evaluation": code_hash()},
        "machine": machine(),
        "command": list(command),
        "seconds": round(seconds, 3),
    }


def code_hash() -> str:
    """SHA-256 of this folder's Python files, by name."""
    folder, digest = Path(__file__).parent, hashlib.sha256()
    for path in sorted(folder.rglob("*.py")):
        digest.update(f"{path.relative_to(folder).as_posix()}\0".encode() + path.read_bytes())
    return digest.hexdigest()
