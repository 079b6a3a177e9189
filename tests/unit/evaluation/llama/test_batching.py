"""Requests become inputs as lm-evaluation-harness cuts them, equal ones once, in batches within the limits."""

from __future__ import annotations

import pytest

from megatron_synE.evaluation.engine import ScoringRequest
from megatron_synE.evaluation.llama.batching import (
    BatchLimits,
    Target,
    TokenSequence,
    check_requests,
    row_batches,
    token_sequences,
)


def test_a_continuation_is_predicted_by_the_token_before_each_of_its_tokens() -> None:
    (sequence,) = token_sequences([ScoringRequest((5, 6, 7), (8, 9))], 10)
    assert sequence.tokens == (5, 6, 7, 8)
    assert sequence.targets == [Target(2, 8, 0), Target(3, 9, 0)]


def test_choices_of_one_token_share_an_input() -> None:
    requests = [ScoringRequest((1, 2), (choice,)) for choice in (3, 4, 5)] + [ScoringRequest((1,), (2, 3))]
    (sequence,) = token_sequences(requests, 10)
    assert sequence.tokens == (1, 2)
    assert sequence.targets == [Target(0, 2, 3), Target(1, 3, 0), Target(1, 4, 1), Target(1, 5, 2), Target(1, 3, 3)]


@pytest.mark.parametrize("length, num_kept", [(3, 4), (4, 5), (5, 5), (50, 5)])
def test_too_long_requests_lose_their_beginning(length: int, num_kept: int) -> None:
    context = tuple(range(100, 100 + length))
    (sequence,) = token_sequences([ScoringRequest(context, (1, 2))], 5)
    assert sequence.tokens == ((*context, 1, 2)[-6:])[:-1] and len(sequence.tokens) == num_kept
    assert [target.position for target in sequence.targets] == [num_kept - 2, num_kept - 1]


def test_a_continuation_may_be_as_long_as_the_context() -> None:
    (sequence,) = token_sequences([ScoringRequest((9, 8), (1, 2, 3, 4, 5))], 5)
    assert sequence.tokens == (8, 1, 2, 3, 4)
    assert [target.position for target in sequence.targets] == [0, 1, 2, 3, 4]


def test_rows_are_taken_longest_first_and_fit_the_limits_when_padded() -> None:
    sequences = [TokenSequence(tuple(range(length))) for length in (3, 30, 7, 7, 12, 1, 90)]
    batches = row_batches(sequences, BatchLimits(tokens=36))
    assert [[len(sequence.tokens) for sequence in batch] for batch in batches] == [[90], [30], [12, 7, 7], [3, 1]]
    by_two = row_batches(sequences, BatchLimits(tokens=36, sequences=2))
    assert [[len(sequence.tokens) for sequence in batch] for batch in by_two] == [[90], [30], [12, 7], [7, 3], [1]]


@pytest.mark.parametrize(
    "request_, message",
    [
        (ScoringRequest((), (1,)), "request 1: context and continuation need a token each"),
        (ScoringRequest((1,), ()), "request 1: context and continuation need a token each"),
        (ScoringRequest((1, 100), (1,)), "request 1: a token id is not in the model's vocabulary of 100"),
        (ScoringRequest((1,), (-1,)), "request 1: a token id is not in the model's vocabulary of 100"),
        (ScoringRequest((1,), (1,) * 9), "a continuation of 9 tokens does not fit into the model's context of 8"),
    ],
)
def test_what_cannot_be_answered_is_told(request_: ScoringRequest, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        check_requests([ScoringRequest((99,), (0,)), request_], 100, 8)


@pytest.mark.parametrize("limits", [{"tokens": 0}, {"sequences": 0}])
def test_limits_are_positive(limits: dict[str, int]) -> None:
    with pytest.raises(ValueError, match="give 1 or more"):
        BatchLimits(**limits)
