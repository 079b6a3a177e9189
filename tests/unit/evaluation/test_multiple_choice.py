"""Which choice counts as chosen: worked examples, and lm-evaluation-harness's own arithmetic."""

from __future__ import annotations

import numpy as np
import pytest

from megatron_synE.evaluation.multiple_choice import is_right
from megatron_synE.training.benchmarks import METRICS


def test_by_sum_by_character_and_by_byte() -> None:
    """-4 is largest; per character -1, -0.9, -1.5; per byte -1, -0.9, -0.5."""
    log_likelihoods, characters, sizes = [-4.0, -9.0, -6.0], [4, 10, 4], [4, 10, 12]
    chosen = {
        metric: [gold for gold in range(3) if is_right(metric, log_likelihoods, characters, sizes, [gold])]
        for metric in METRICS
    }
    assert chosen == {"acc": [0], "acc_norm": [1], "acc_bytes": [2]}
    assert is_right("acc", log_likelihoods, characters, sizes, [2, 0]), "several may be right"


def test_of_equal_ones_the_first() -> None:
    assert is_right("acc", [-1.0, -1.0], [1, 1], [1, 1], [0])
    assert not is_right("acc", [-1.0, -1.0], [1, 1], [1, 1], [1])


def test_as_the_harness_counts() -> None:
    pytest.importorskip("lm_eval")
    from lm_eval.api.task import ConfigurableTask

    choices = ["水", "a long choice", "氧气和氢", "no"]
    task = ConfigurableTask.__new__(ConfigurableTask)
    task.OUTPUT_TYPE, task.multiple_input, task.multiple_target = "multiple_choice", 0, 0
    task._metric_fn_list = dict.fromkeys(METRICS)
    task.config_process_results = None
    task.doc_to_choice = lambda doc: choices  # type: ignore[method-assign,assignment,misc]
    random = np.random.default_rng(0)
    for _ in range(50):
        gold = int(random.integers(len(choices)))
        task.doc_to_target = lambda doc, gold=gold: gold  # type: ignore[method-assign,assignment,misc]
        task._config = type("Config", (), {"process_results": None})()
        values = (-random.uniform(1, 20, len(choices))).tolist()
        theirs = task.process_results({}, [(value, False) for value in values])
        lengths = [len(choice) for choice in choices], [len(choice.encode("utf-8")) for choice in choices]
        assert {name: float(is_right(name, values, *lengths, [gold])) for name in METRICS} == theirs
