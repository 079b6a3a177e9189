"""What determined the results of an evaluation: enough to say whether two can be compared, and to do one again."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from megatron_synE.evaluation.encoding import RequestEncoder
from megatron_synE.evaluation.task_files import LoadedTasks
from megatron_synE.runtime.software import commit, machine, versions

FORMAT = 1


def make_manifest(
    *, settings: Mapping[str, Any], model: Mapping[str, Any], generator: Mapping[str, Any], encoder: RequestEncoder,
    tasks: LoadedTasks, prompts: Mapping[str, Any], harness: Mapping[str, Any], command: Sequence[str],
) -> dict[str, Any]:  # fmt: skip
    """The content of manifest.json.

    | field | what it says |
    | --- | --- |
    | `settings` | tasks, limit, seed, whether code is run |
    | `model`, `generator` | what scored, and what continued prompts: fingerprint of the weights, dtype, layout |
    | `tokenizer`, `bos`, `bos_id` | name and fingerprint; the policy in words, and the token's id or null |
    | `templates`, `data`, `examples` | SHA-256 of each task file, of each data file and of each few-shot example |
    | `prompts` | of each benchmark the first items: text and token ids |
    | `code`, `machine` | versions, git commit, hash of this package's evaluation; host |
    | `harness` | what lm-eval writes as `config` of its results |
    | `command` | the command line |

    Args:
        prompts: benchmark → its first prompts.
        harness: limit, seeds and the like.
    """
    return {
        "format": FORMAT,
        "settings": settings,
        "model": model,
        "generator": generator,
        **encoder.describe(),
        "templates": tasks.templates,
        "data": tasks.data_files,
        "examples": tasks.examples,
        "prompts": prompts,
        "code": {"versions": versions(("lm_eval", "gigatoken")), "commit": commit(), "evaluation": code_hash()},
        "machine": machine(),
        "harness": harness,
        "command": list(command),
    }


def code_hash() -> str:
    """SHA-256 of this folder's Python files, by name."""
    folder, digest = Path(__file__).parent, hashlib.sha256()
    for path in sorted(folder.rglob("*.py")):
        digest.update(f"{path.relative_to(folder).as_posix()}\0".encode() + path.read_bytes())
    return digest.hexdigest()
