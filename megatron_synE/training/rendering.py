"""Benchmarks as token ids, made by a process of its own: what the harness imports starts threads, and a trainer forks.

The child is `evaluation.render`, named and not imported. It reads one JSON object and answers with one.
"""

from __future__ import annotations

import dataclasses
import importlib.util
import json
import os
import signal
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from megatron_synE.config.job import JobConfig
from megatron_synE.config.model import LlamaArchitecture
from megatron_synE.corpus.indexed import IndexedCorpus
from megatron_synE.training.faults import STOP_SIGNALS

RENDERER = "megatron_synE.evaluation.render"
FIELD = "evaluation.benchmarks"
OF_THE_RUN = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
"""Variables of the environment that would make the child believe that it is one of the trainer's processes."""


@dataclass(frozen=True)
class Rendering:
    """What the child answered."""

    problems: list[str]
    """Why the benchmarks cannot be measured, one line each: the field or file, and the fix."""
    notes: list[str]
    """What a person should know of the requests."""


def benchmark_problems(job: JobConfig) -> list[str]:
    """What can be found out without the child: whether it can do its work at all."""
    config = job.evaluation.benchmarks
    if not config.tasks:
        return []
    found = []
    if importlib.util.find_spec("lm_eval") is None:
        found.append(
            f"{FIELD}: lm-evaluation-harness is not installed; pip install 'megatron_synE[eval]', or name no tasks"
        )
    if config.data_dir is not None and not Path(config.data_dir).is_dir():
        found.append(f"{FIELD}.data_dir: {config.data_dir} is no folder; name the one that holds the benchmarks' files")
    try:
        tokenizer_of(job)
    except ValueError as error:
        found.append(str(error))
    return found


def tokenizer_of(job: JobConfig) -> dict[str, Any]:
    """The tokenizer of the requests: type and name for `build_tokenizer`, and the `fingerprints` that it may have.

    Without fingerprints nothing is known of the one that made the corpora.

    Raises:
        ValueError: the corpora's sidecars name none or several, and the job names none.
    """
    given, made_by = job.evaluation.benchmarks.tokenizer, {}
    for source in job.data.sources.values():
        recorded = _recorded_tokenizer(source.prefix)
        if recorded.keys() >= {"type", "name", "fingerprint"}:
            made_by[str(recorded["fingerprint"])] = recorded
    fingerprints = sorted(made_by)
    if given is not None:
        return {"type": "auto", "name": given, "fingerprints": fingerprints}
    if len(made_by) != 1:
        what = "several tokenizers" if made_by else "a tokenizer that their sidecars do not name"
        raise ValueError(f"{FIELD}.tokenizer: the corpora were made by {what}; name one here")
    (recorded,) = made_by.values()
    return {"type": str(recorded["type"]), "name": str(recorded["name"]), "fingerprints": fingerprints}


def _recorded_tokenizer(prefix: str) -> dict[str, Any]:
    try:
        return IndexedCorpus(prefix).tokenizer or {}
    except (OSError, ValueError):
        return {}  # told where the data are checked


def render(job: JobConfig, architecture: LlamaArchitecture, output: Path | None) -> Rendering:
    """Let the child make the requests of the job's benchmarks.

    Args:
        output: the file; one that is there and holds the same requests stays. None: nothing is written.

    Raises:
        ValueError: the tokenizer is not known.
        RuntimeError: the child ended without an answer; its words stand on stderr.
    """
    asked = {
        **dataclasses.asdict(job.evaluation.benchmarks),
        "tokenizer": tokenizer_of(job),
        "vocab_size": architecture.vocab_size,
        "max_length_tokens": architecture.max_position_embeddings,
        "output": None if output is None else str(output.absolute()),
        "parent": os.getpid(),
    }
    environment = {name: value for name, value in os.environ.items() if name not in OF_THE_RUN}
    signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)  # what the child inherits: they are for its parent
    try:
        child = subprocess.Popen(
            [sys.executable, "-m", RENDERER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
            encoding="utf-8", env={**environment, "CUDA_VISIBLE_DEVICES": ""},
        )  # fmt: skip
    finally:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, STOP_SIGNALS)
    with child:
        answer, _ = child.communicate(json.dumps(asked))
    if child.returncode:
        raise RuntimeError(f"{FIELD}: the process that renders them ended with status {child.returncode}")
    return Rendering(**json.loads(answer))
