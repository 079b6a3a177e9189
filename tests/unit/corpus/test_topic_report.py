"""Accuracy, F1, confusion and calibration against numbers computed by hand."""

from __future__ import annotations

import json

import numpy as np
import pytest

from megatron_synE.corpus.topic_report import report

NAMES = ("law", "history", "never", "sport")


def test_figures_by_hand() -> None:
    probabilities = np.array(
        [
            [0.95, 0.05, 0, 0],  # right
            [0.91, 0.09, 0, 0],  # wrong: history
            [0.35, 0.65, 0, 0],  # right
            [0.10, 0.61, 0, 0.29],  # wrong: sport
        ],
        np.float32,
    )
    found = report(np.array([0, 1, 1, 3]), probabilities, NAMES)
    assert found.confusion == [[1, 0, 0, 0], [1, 1, 0, 0], [0, 0, 0, 0], [0, 1, 0, 0]]
    assert found.documents == 4 and found.accuracy == 0.5
    assert found.macro_f1 == pytest.approx((2 / 3 + 2 / 4 + 0) / 3)
    assert [(b.low, b.documents, b.accuracy) for b in found.bins] == [(pytest.approx(0.6), 2, 0.5), (0.9, 2, 0.5)]
    assert found.calibration_error == pytest.approx(((0.63 - 0.5) * 2 + (0.93 - 0.5) * 2) / 4)


def test_a_calibrated_classifier_has_no_error() -> None:
    probabilities = np.tile(np.array([[0.75, 0.25, 0, 0]], np.float32), (100, 1))
    found = report(np.array([0] * 75 + [1] * 25), probabilities, NAMES)
    assert found.calibration_error == pytest.approx(0)


def test_probabilities_at_the_ends_have_a_bin() -> None:
    probabilities = np.array([[1.0, 0, 0, 0], [1.0000001, 0, 0, 0], [0.25, 0.25, 0.25, 0.25]], np.float32)
    found = report(np.array([0, 0, 1]), probabilities, NAMES)
    assert sum(b.documents for b in found.bins) == 3
    assert found.bins[-1].documents == 2 and found.bins[0].low == pytest.approx(0.2)


def test_tables_for_people() -> None:
    probabilities = np.array([[0.9, 0.1, 0, 0], [0.2, 0.8, 0, 0], [0.6, 0.4, 0, 0]], np.float32)
    lines = report(np.array([0, 1, 1]), probabilities, NAMES).lines()
    assert lines[0] == "3 documents: accuracy 0.6667, macro-F1 0.6667, expected calibration error 0.3000"
    assert "never" not in "".join(lines) and "sport" not in "".join(lines)
    header, law, history = lines[2:5]
    assert header.split() == ["0", "1"] and law.split() == ["0", "law", "1", "0"]
    assert history.split() == ["1", "history", "1", "1"] and len(law) == len(header) == len(history)
    assert any("0.8 to 0.9" in line or "0.9 to 1.0" in line for line in lines)
    json.dumps(report(np.array([0, 1, 1]), probabilities, NAMES).to_json())
