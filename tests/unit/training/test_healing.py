"""What counts as a spike, what is remembered, and when it is too much."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest

from megatron_synE.config.healing import HealingConfig
from megatron_synE.training.healing import Action, Incident, IncidentLog, SpikeDetector


def incident(step: int, action: Action) -> Incident:
    return Incident(step, "loss 9", action, [[0, 8]], [])


def filled(config: HealingConfig, num_steps: int = 64) -> SpikeDetector:
    detector, random = SpikeDetector(config), np.random.default_rng(0)
    for step in range(num_steps):
        loss = 4.0 - 0.01 * step + random.normal(0, 0.05)
        detector.accept({"loss": loss, "gradient norm": random.lognormal(0, 0.3), "loss of web": loss})
    return detector


def test_a_spike_is_far_above_the_others() -> None:
    detector = filled(HealingConfig(window_steps=64))
    assert detector.spike({"loss": 3.5, "gradient norm": 2.0}) is None
    assert detector.spike({"loss": 0.1}) is None, "a fall is no spike"
    assert "loss 9" in str(detector.spike({"loss": 9.0, "gradient norm": 1.0}))
    assert "gradient norm" in str(detector.spike({"loss": 3.5, "gradient norm": 40.0}))
    assert "loss of web" in str(detector.spike({"loss": 3.5, "loss of web": 12.0}))


def test_by_hand() -> None:
    """Median 3, MAD 1: 4.4826 lies one standard deviation of a normal distribution above it."""
    detector = SpikeDetector(HealingConfig(window_steps=8, threshold=0.9))
    detector.accept({"loss": math.nan})
    for value in (1.0, 2.0, 3.0, 4.0, 5.0):
        assert detector.spike({"loss": 100.0}) is None or value > 4, "half a window is needed"
        detector.accept({"loss": value})
    assert "1.0 robust deviations above the median 3" in str(detector.spike({"loss": 4.4826}))
    assert detector.spike({"loss": 4.3}) is None


def test_values_that_hardly_differ_make_no_spike_of_a_small_change() -> None:
    detector = SpikeDetector(HealingConfig(window_steps=8))
    for _ in range(8):
        detector.accept({"loss": 2.0, "zero": 0.0})
    assert detector.spike({"loss": 2.01}) is None
    assert detector.spike({"loss": 2.1}) is not None
    assert detector.spike({"zero": 1.0}) is not None


def test_a_resumed_run_judges_as_the_uninterrupted_one() -> None:
    config = HealingConfig(window_steps=32)
    detector = filled(config)
    resumed = SpikeDetector(config, json.loads(json.dumps(detector.to_json())))
    assert resumed.to_json() == detector.to_json()
    assert resumed.spike({"loss": 9.0}) == detector.spike({"loss": 9.0})
    assert max(map(len, detector.to_json().values())) == 32


def test_incidents_are_bounded_in_a_row_and_in_all() -> None:
    log = IncidentLog(HealingConfig(max_in_a_row=2, max_incidents=4))
    for step in range(1, 4):
        assert log.exceeded() is None
        log.add(incident(step, "skip"))
    assert "healing.max_in_a_row: 3" in str(log.exceeded())
    log.step_counts()
    log.add(incident(5, "rollback"))
    log.add(incident(6, "record"))
    assert log.exceeded() is None
    log.step_counts()
    log.add(incident(7, "skip"))
    assert "healing.max_incidents: 5" in str(log.exceeded())
    content = json.loads(json.dumps(log.to_json()))
    again = IncidentLog(HealingConfig(), content["incidents"], content["in_a_row"])
    assert again.incidents == log.incidents and again.in_a_row == log.in_a_row == 1


@pytest.mark.parametrize("field", ["threshold", "window_steps", "pass_over_steps", "max_in_a_row", "max_incidents"])
def test_bounds_that_make_no_sense_are_refused(field: str) -> None:
    assert HealingConfig().problems() == []
    assert f"healing.{field}" in HealingConfig(**{field: 0}).problems()[0]
