"""Requests → token sequences whose likelihoods are computed together. No torch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from megatron_synE.evaluation.engine import ScoringRequest


@dataclass(frozen=True)
class BatchLimits:
    """How much goes through the model at once. Answers do not depend on it."""

    tokens: int = 4096
    """Tokens of a batch, padding included; a longer sequence is a batch of its own, or several."""
    sequences: int | None = None
    """Sequences of a batch; none for as many as the tokens allow."""

    def __post_init__(self) -> None:
        for name in ("tokens", "sequences"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"batch limit of {value} {name}: give 1 or more")


class Target(NamedTuple):
    """A token that a request asks for."""

    position: int
    """Of the token of the input that predicts it."""
    token: int
    request: int
    """Number of the request."""


@dataclass
class TokenSequence:
    """What the model reads, and all that is asked about it."""

    tokens: tuple[int, ...]
    targets: list[Target] = field(default_factory=list)
    """By position."""


def check_requests(requests: Sequence[ScoringRequest], vocab_size: int, max_length_tokens: int) -> None:
    """Whether a model of these sizes can answer.

    Raises:
        ValueError: an id outside the vocabulary, an empty part, or a continuation that is too long.
    """
    for number, (context, continuation) in enumerate(requests):
        if not context or not continuation:
            raise ValueError(f"request {number}: context and continuation need a token each, at least")
        if len(continuation) > max_length_tokens:
            raise ValueError(
                f"request {number}: a continuation of {len(continuation)} tokens does not fit into the model's context "
                f"of {max_length_tokens}"
            )
        if not 0 <= min(min(context), min(continuation)) <= max(max(context), max(continuation)) < vocab_size:
            raise ValueError(
                f"request {number}: a token id is not in the model's vocabulary of {vocab_size}: the text was encoded "
                "with another tokenizer"
            )


def token_sequences(requests: Sequence[ScoringRequest], max_length_tokens: int) -> list[TokenSequence]:
    """The inputs to be read, equal ones once: continuations that differ in their last token only share an input.

    The last token of a continuation is not read. Of a request that is too long the last `max_length_tokens` + 1 tokens
    are kept, as in lm-evaluation-harness's `hf` model.
    """
    by_tokens: dict[tuple[int, ...], TokenSequence] = {}
    for number, (context, continuation) in enumerate(requests):
        tokens = (*context, *continuation)[-(max_length_tokens + 1) : -1]
        sequence = by_tokens.setdefault(tokens, TokenSequence(tokens))
        first = len(tokens) - len(continuation)
        sequence.targets += [Target(first + n, token, number) for n, token in enumerate(continuation)]
    for sequence in by_tokens.values():
        sequence.targets.sort(key=lambda target: target.position)
    return list(by_tokens.values())


def row_batches(sequences: Sequence[TokenSequence], limits: BatchLimits) -> list[list[TokenSequence]]:
    """Runs of sequences, longest first, that fit the limits when each is padded to the longest of its run."""
    ordered = sorted(sequences, key=lambda sequence: (-len(sequence.tokens), sequence.tokens))
    batches: list[list[TokenSequence]] = []
    start = 0
    while start < len(ordered):
        size = max(1, limits.tokens // len(ordered[start].tokens))
        size = min(size, limits.sequences or size)
        batches.append(ordered[start : start + size])
        start += size
    return batches
