"""Whole training runs inside the test's processes: the trainer's own setup and loop on a small corpus."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from megatron_synE.config.job import JobConfig
from megatron_synE.config.parse import parse_job
from tests.helpers.corpora import write_corpus

SEQ_LENGTH = 16
POISON = 299
"""A token that `POISONED_DOCUMENT` alone holds."""
POISONED_DOCUMENT = 130
MODEL = {
    "num_layers": 1, "hidden_size": 32, "ffn_hidden_size": 48, "num_attention_heads": 2, "num_query_groups": 1,
    "vocab_size": 300, "max_position_embeddings": 64,
}  # fmt: skip


def write_job(folder: Path, *, num_samples: int = 160, **sections: Any) -> list[str]:
    """Corpora of two sources, one with topics and perplexities, and a job that reads them; its arguments."""
    random = np.random.default_rng(0)
    documents = [random.integers(0, POISON, random.integers(5, 30)).tolist() for _ in range(400)]
    documents[POISONED_DOCUMENT][3] = POISON
    write_corpus(folder / "web", documents[:300], topics=[n % 2 for n in range(300)], names=["maths", "law"],
                 perplexity=random.uniform(2, 50, 300).tolist())  # fmt: skip
    write_corpus(folder / "book", documents[300:])
    job: dict[str, Any] = {
        "model": MODEL,
        "precision": {"dtype": "fp32"},
        "data": {
            "seq_length": SEQ_LENGTH,
            "heldout_fraction": 0.05,
            "heldout_samples": 4,
            "sources": {
                "web": {"prefix": str(folder / "web"), "topics": True, "order": "perplexity_ascending"},
                "book": {"prefix": str(folder / "book")},
            },
            "stages": [{"name": "one", "tokens": num_samples * SEQ_LENGTH, "weights": {"web": 0.75, "book": 0.25}}],
            "adjustment": {"strategy": "topic_perplexity", "interval_tokens": 48 * SEQ_LENGTH, "cap": 0.9},
        },
        "optimizer": {"lr": 1e-3},
        "schedule": {"warmup_steps": 2, "decay_steps": 4},
        "training": {"micro_batch_size": 2, "global_batch_size": 8},
        "evaluation": {"interval_steps": 7},
        "checkpoint": {"save": str(folder / "run"), "save_interval_steps": 3},
        "logging": {"tensorboard": False},
    }
    for name, fields in sections.items():
        job.setdefault(name, {}).update(fields)
    file = folder / "job.yaml"
    file.write_text(json.dumps(job), encoding="utf-8")  # JSON is YAML
    return ["--config", str(file)]


def train(
    arguments: list[str], change: Callable[[Any], None] = lambda run: None,
    benchmarks: Callable[[Any], Any] = lambda run: None,
) -> dict[str, Any]:  # fmt: skip
    """One start of the trainer in this process, from check to final save; what the run was at its end.

    Args:
        change: made to the run before its first step.
        benchmarks: who measures them.
    """
    from megatron_synE.progress import ProgressLine
    from megatron_synE.runtime import initialize
    from megatron_synE.runtime.process_groups import world_size_from_environment
    from megatron_synE.training.checks import check_job
    from megatron_synE.training.config_changes import as_json
    from megatron_synE.training.failure import RunEnded
    from megatron_synE.training.faults import StopSignal
    from megatron_synE.training.loop import TrainingLoop
    from megatron_synE.training.metrics import MetricsWriter
    from megatron_synE.training.setup import build_run

    job: JobConfig = parse_job(arguments)
    architecture = check_job(job, world_size_from_environment())
    runtime = _runtime(job, initialize)
    run = build_run(job, as_json(job), architecture, runtime)
    change(run)
    metrics = MetricsWriter(
        Path(str(job.checkpoint.save)) if runtime.is_main else None, resumed_step=run.first_step,
        keeps=run.state.stands_for,
    )  # fmt: skip
    error = ""
    try:
        progress = ProgressLine(first_step=0, last_step=0, show=False)
        TrainingLoop(run, metrics, progress, StopSignal(), _unstarted_watchdog(), benchmarks(run)).train()
    except (FloatingPointError, RunEnded) as problem:
        error = str(problem)
    finally:
        metrics.close()
    weights = [parameter.detach().double().sum().item() for c in run.model_chunks for parameter in c.parameters()]
    return {
        "first_step": run.first_step, "step": run.state.trajectory.step, "error": error, "weights": weights,
        "consumed_samples": run.state.trajectory.consumed_samples,
    }  # fmt: skip


def _unstarted_watchdog() -> Any:
    from megatron_synE.runtime.peers import Peers
    from megatron_synE.runtime.watchdog import Watchdog

    return Watchdog(
        Peers.meet(), hang_timeout_seconds=600, slow_timeout_seconds=600, folder=None, launcher=None,
        on_launcher_gone=lambda: None, tell=print,
    )  # fmt: skip


def _runtime(job: JobConfig, initialize: Callable[..., Any]) -> Any:
    """A second start in one process goes on with the process groups that are there."""
    import torch

    if torch.distributed.is_initialized():
        from megatron.core import parallel_state

        parallel_state.destroy_model_parallel()
    return initialize(job.parallel, job.training.seed)


def records(folder: Path, kind: str) -> list[dict[str, Any]]:
    """The records of a run's metrics.jsonl."""
    lines = (folder / "run" / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    return [record for record in map(json.loads, lines) if record["kind"] == kind]
