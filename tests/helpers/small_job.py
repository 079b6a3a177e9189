"""A run of few, short steps in which everything that can be lost matters: the state of the data stream above all."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from tests.helpers.corpora import write_corpus

SEQ_LENGTH = 32
GLOBAL_BATCH_SIZE = 4
STEPS = 16
SAVE_INTERVAL = 3
VOCAB_SIZE = 256
TOPICS = ("numbers", "letters", "signs")
JOB_FILE = "job.yaml"
RUN = "run"
CORPORA = "corpora"


def write_job(folder: Path, *, measured: bool, **sections: dict[str, Any]) -> None:
    """`job.yaml` and corpora in `folder`; all paths in it are relative.

    Args:
        measured: topic shares move by held-out perplexity; else at given points, which no layout's rounding moves.
        sections: fields of the job that are added or replaced.
    """
    corpora = folder / CORPORA
    corpora.mkdir(parents=True)
    rng = np.random.default_rng(5)
    pages = [_page(rng, number % len(TOPICS)) for number in range(90)]
    write_corpus(
        corpora / "web", pages, topics=[number % len(TOPICS) for number in range(90)], names=TOPICS,
        perplexity=rng.uniform(2, 50, 90).tolist(),
    )  # fmt: skip
    write_corpus(corpora / "book", [_page(rng, 3) for _ in range(40)])
    (folder / JOB_FILE).write_text(json.dumps(job(measured, sections), indent=1), encoding="utf-8")  # JSON is YAML


def _page(rng: np.random.Generator, kind: int) -> list[int]:
    """Words of one kind walk up and down a part of the vocabulary: something that a small model learns."""
    start, length = 60 * kind, int(rng.integers(30, 90))
    return (start + np.cumsum(rng.integers(0, 3, length)) % 60).tolist()


def job(measured: bool, sections: dict[str, dict[str, Any]]) -> dict[str, Any]:
    tokens_per_step = SEQ_LENGTH * GLOBAL_BATCH_SIZE
    moved = [{"numbers": 0.2, "letters": 0.2, "signs": 0.6}, {"numbers": 0.5, "letters": 0.4, "signs": 0.1}]
    by_perplexity = {"strategy": "topic_perplexity", "interval_tokens": 4 * tokens_per_step, "alpha": 0.5}
    at_points = {
        "strategy": "schedule",
        "schedule": [
            {"at_tokens": at * tokens_per_step, "topic_shares": {"web": shares}}
            for at, shares in zip((4, 9), moved, strict=True)
        ],
    }
    written: dict[str, dict[str, Any]] = {
        "model": {
            "preset": "llama3_tiny", "num_layers": 2, "hidden_size": 32, "ffn_hidden_size": 48,
            "num_attention_heads": 4, "num_query_groups": 2, "vocab_size": VOCAB_SIZE,
            "make_vocab_size_divisible_by": 8,
        },
        "precision": {"dtype": "fp32"},
        "data": {
            "seq_length": SEQ_LENGTH,
            "heldout_fraction": 0.15,
            "heldout_samples": 2,
            "sources": {
                "web": {"prefix": f"{CORPORA}/web", "language": "en", "order": "perplexity_ascending", "topics": True},
                "book": {"prefix": f"{CORPORA}/book", "language": "en"},
            },
            "stages": [
                {"name": "one", "tokens": tokens_per_step * 10, "weights": {"web": 0.75, "book": 0.25}},
                {"name": "two", "tokens": tokens_per_step * (STEPS - 10), "weights": {"web": 0.5, "book": 0.5}},
            ],
            "adjustment": by_perplexity if measured else at_points,
        },
        "optimizer": {"lr": 1e-2},
        "schedule": {"warmup_tokens": 3 * tokens_per_step, "decay_tokens": 4 * tokens_per_step},
        "training": {"micro_batch_size": 1, "global_batch_size": GLOBAL_BATCH_SIZE},
        "evaluation": {"interval_steps": 5, "at_end": True},
        "checkpoint": {"save": RUN, "save_interval_steps": SAVE_INTERVAL},
        "logging": {"tensorboard": False},
    }  # fmt: skip
    for name, fields in sections.items():
        written[name] = {**written.get(name, {}), **fields}
    return written
