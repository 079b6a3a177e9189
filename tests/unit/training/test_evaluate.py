"""What an evaluation says of losses that are out of the ordinary."""

from __future__ import annotations

import json
import math

import pytest

from megatron_synE.training.evaluate import EvaluationResult


def test_a_loss_above_709_has_a_perplexity() -> None:
    """Defect 9: exp(710) is no double; the run ended with OverflowError before its final save."""
    result = EvaluationResult({"web": 1e6, "book": 2.0}, {"web": 10, "book": 10})
    assert result.perplexity_by_component["book"] == math.exp(2.0)
    assert 1e307 < result.perplexity_by_component["web"] < math.inf
    assert json.loads(json.dumps(result.perplexity_by_component, allow_nan=False)) == result.perplexity_by_component


def test_the_mean_of_all_components_by_tokens_and_by_the_mixture() -> None:
    found = EvaluationResult({"web": 2.0, "book": 4.0}, {"web": 300, "book": 100})
    assert found.mean_loss() == 2.5
    assert found.mixture_loss({"web": 0.4, "book": 0.4, "unmeasured": 0.2}) == pytest.approx(3.0)
    assert math.isnan(EvaluationResult({}, {}).mean_loss()) and math.isnan(found.mixture_loss({"web": 0.0, "book": 0}))
