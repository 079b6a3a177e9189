"""What an evaluation says of losses that are out of the ordinary."""

from __future__ import annotations

import json
import math

from megatron_synE.training.evaluate import EvaluationResult


def test_a_loss_above_709_has_a_perplexity() -> None:
    """Defect 9: exp(710) is no double; the run ended with OverflowError before its final save."""
    result = EvaluationResult({"web": 1e6, "book": 2.0}, {"web": 10, "book": 10})
    assert result.perplexity_by_component["book"] == math.exp(2.0)
    assert 1e307 < result.perplexity_by_component["web"] < math.inf
    assert json.loads(json.dumps(result.perplexity_by_component, allow_nan=False)) == result.perplexity_by_component
