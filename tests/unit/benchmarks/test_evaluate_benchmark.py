"""What benchmarks/evaluate.py asks, and makes of its readings."""

from __future__ import annotations

import evaluate
import pytest


def test_a_subject_has_one_set_of_examples_before_questions_with_choices() -> None:
    requests = evaluate.subject(3, num_questions=5)
    assert len(requests) == 5 * evaluate.NUM_CHOICES and requests == evaluate.subject(3, num_questions=5)
    contexts = [tuple(context) for context, _ in requests]
    assert len(set(contexts)) == 5 and all(len(choice) == 1 for _, choice in requests)
    shared = next(n for n, column in enumerate(zip(*contexts, strict=False)) if len(set(column)) > 1)
    low, high = evaluate.SHOTS_TOKENS
    assert low <= shared <= high
    assert requests != evaluate.subject(4, num_questions=5)


def test_ratios_are_those_of_the_rounds() -> None:
    seconds = {"lm_eval_hf": [6.0, 8.0, 10.0], "ours": [1.0, 2.0, 2.0], "ours_whole_sequences": [4.0, 4.0, 4.0]}
    found = evaluate.figures(seconds, requests_per_round=10)
    assert found["requests_ratio_vs_lm_eval_hf"] == 5.0 and found["ratio_whole_sequences"] == 2.0
    assert found["requests_per_s_ours"] == 6.0
    assert found["quartiles"]["requests_ratio_vs_lm_eval_hf"] == [4.5, 5.0, 5.5]


@pytest.mark.parametrize(
    "answer, dtype, agree",
    [
        ((-3.00005, True), "fp32", True),
        ((-3.001, True), "fp32", False),
        ((-3.0, False), "fp32", False),
        ((-3.1, False), "bf16", True),
        ((-4.0, True), "bf16", False),
    ],
)
def test_answers_have_to_be_those_of_the_harness(answer: tuple[float, bool], dtype: str, agree: bool) -> None:
    right = (-3.0, True)
    answers = {"lm_eval_hf": [right, right], "ours": [right, answer], "ours_whole_sequences": [right, right]}
    assert evaluate.compare(answers, dtype) is agree
