"""What differs from the checkpoint's configuration is told, one line for each field."""

from __future__ import annotations

import dataclasses

from megatron_synE.config.data import DataConfig, SourceConfig, StageConfig
from megatron_synE.config.job import JobConfig
from megatron_synE.config.optimizer import OptimizerConfig
from megatron_synE.config.training import TrainingConfig
from megatron_synE.training.config_changes import as_json, config_changes, describe

BEFORE = JobConfig(
    data=DataConfig(
        sources={"web": SourceConfig(prefix="web")},
        stages=[StageConfig(name="one", tokens=1000, weights={"web": 1})],
    ),
    training=TrainingConfig(rampup_batch_size=(4, 4, 100), exit_after_steps=3),
)


def test_nothing_changed() -> None:
    assert config_changes(as_json(BEFORE), as_json(BEFORE)) == {}
    goes_on = dataclasses.replace(BEFORE, training=dataclasses.replace(BEFORE.training, exit_after_steps=None))
    assert config_changes(as_json(BEFORE), as_json(goes_on)) == {}, "how long one process works is no change"


def test_learning_rate_mixture_and_seed() -> None:
    data = dataclasses.replace(
        BEFORE.data,
        sources={"web": SourceConfig(prefix="web"), "book": SourceConfig(prefix="book")},
        stages=[StageConfig(name="one", tokens=2000, weights={"web": "1/2", "book": "1/2"})],
    )
    training = dataclasses.replace(BEFORE.training, seed=7, rampup_batch_size=None)
    after = dataclasses.replace(BEFORE, data=data, training=training, optimizer=OptimizerConfig(lr=0.5))
    changes = config_changes(as_json(BEFORE), as_json(after))
    assert changes["optimizer.lr"] == [BEFORE.optimizer.lr, 0.5]
    assert changes["data.stages[0].tokens"] == [1000, 2000]
    assert changes["data.stages[0].weights.web"] == [1, "1/2"]
    assert changes["data.stages[0].weights.book"] == [None, "1/2"]
    assert changes["data.sources.book.prefix"] == [None, "book"]
    assert changes["training.rampup_batch_size"] == [[4, 4, 100], None]
    lines = describe(changes)
    assert len(lines) == len(changes)
    assert any(line.startswith("changed since the checkpoint: optimizer.lr") and "0.5" in line for line in lines)
    assert any("training.seed" in line and "without effect" in line for line in lines)


def test_a_field_that_an_older_version_did_not_know_had_its_default() -> None:
    older = as_json(BEFORE)
    del older["healing"], older["training"]["prefetch_steps"]
    assert config_changes(older, as_json(BEFORE)) == {}
    after = dataclasses.replace(BEFORE, training=dataclasses.replace(BEFORE.training, prefetch_steps=5))
    assert config_changes(older, as_json(after)) == {"training.prefetch_steps": [2, 5]}
