"""One thread reads ahead while another asks the stream for everything else."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from megatron_synE.config.data import AdjustmentConfig, DataConfig, SourceConfig, StageConfig
from megatron_synE.data import DataStream, components, documents_read, ledger
from tests.helpers.corpora import random_documents, write_corpus

SEQ_LENGTH = 16
NUM_SAMPLES = 600


@pytest.fixture
def config(tmp_path: Path) -> DataConfig:
    """A small source that is read many times, in several orders, with topics."""
    rng = np.random.default_rng(0)
    documents, topics, perplexity = random_documents(rng, 60), rng.integers(0, 2, 60), rng.uniform(1, 9, 60)
    prefix = write_corpus(tmp_path / "web", documents, topics=topics, names=("a", "b"), perplexity=perplexity)
    stages = [
        StageConfig(order, NUM_SAMPLES // 3 * SEQ_LENGTH, {"web": 1}, orders={"web": order})
        for order in ("shuffled", "perplexity_ascending", "stored")
    ]
    adjustment = AdjustmentConfig("topic_perplexity", interval_tokens=SEQ_LENGTH, cap=0.9)
    sources = {"web": SourceConfig(prefix, topics=True)}
    return DataConfig(sources, stages, seq_length=SEQ_LENGTH, heldout_fraction=0.1, adjustment=adjustment)


@pytest.fixture(autouse=True)
def often_switched(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Threads take turns after microseconds, and few epochs are kept, so that they are opened again and again."""
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    monkeypatch.setattr(components, "EPOCHS_KEPT", 2)
    yield
    sys.setswitchinterval(interval)


def in_background(read: Callable[[], object]) -> tuple[threading.Thread, list[object]]:
    """A thread that reads, and what it returned or raised."""
    results: list[object] = []

    def target() -> None:
        try:
            results.append(read())
        except BaseException as error:
            results.append(error)

    thread = threading.Thread(target=target)
    thread.start()
    return thread, results


def rows(stream: DataStream) -> np.ndarray:
    return np.concatenate([stream.batch([sample]).tokens_BS for sample in range(NUM_SAMPLES)])


def test_batches_are_the_same_while_everything_else_is_asked(config: DataConfig) -> None:
    expected, stream = rows(DataStream.build(config)), DataStream.build(config)
    thread, results = in_background(lambda: rows(stream))
    asked = 0
    while thread.is_alive() or asked < 5:
        sample = asked * 37 % NUM_SAMPLES
        stream.shares(sample)
        stream.state_dict(sample)
        ledger(stream, 0, NUM_SAMPLES)
        list(documents_read(stream, sample, NUM_SAMPLES))
        for part in stream.heldout().values():
            part.batch(range(len(part)))
        asked += 1
    thread.join()
    assert isinstance(results[0], np.ndarray), results
    assert (results[0] == expected).all()


def test_samples_before_an_adjustment_are_the_same_while_it_is_made(config: DataConfig) -> None:
    config = replace(config, stages=config.stages[:1])
    last = NUM_SAMPLES // 3
    for _ in range(3):
        stream, expected = DataStream.build(config), DataStream.build(config).batch(range(last)).tokens_BS
        thread, results = in_background(lambda stream=stream: [stream.batch([n]).tokens_BS for n in range(100)])
        for sample in range(100, last, 5):
            stream.adjust(sample, {"web/a": float(10 + sample % 7), "web/b": 10.0})
        thread.join()
        assert (np.concatenate(results[0]) == expected[:100]).all()
