"""What the harness asks of a model, in token ids: log-likelihoods of continuations, and greedy continuations."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol


class ScoringRequest(NamedTuple):
    """A continuation whose probability after its context is asked for."""

    context: tuple[int, ...]
    """At least one token; longer than the model's context together with the continuation, it loses its beginning."""
    continuation: tuple[int, ...]
    """At least one token."""


class LogLikelihood(NamedTuple):
    """What a model says of a continuation."""

    value: float
    """Sum over its tokens of ln p(token | all before it)."""
    is_greedy: bool
    """Whether every token of it is the most probable one."""


@dataclass(frozen=True)
class GenerationRequest:
    """A prompt that is to be continued by the most probable token each time."""

    prompt: tuple[int, ...]
    """At least one token."""
    max_new_tokens: int
    is_finished: Callable[[Sequence[int]], bool]
    """Asked after each token with all new tokens so far; the end-of-text token ends a continuation as well."""


class Engine(Protocol):
    """A model that answers. What is not asked of it: text, tasks, files of results."""

    max_length_tokens: int
    """Longest context and continuation together."""
    vocab_size: int
    """Ids are below it."""

    def info(self) -> dict[str, Any]:
        """What determines the answers (model, step, dtype, layout, code), JSON-able, for the manifest."""
        ...

    def log_likelihoods(
        self,
        requests: Sequence[ScoringRequest],
        on_done: Callable[[Sequence[int], Sequence[LogLikelihood]], None] = lambda numbers, answers: None,
    ) -> list[LogLikelihood]:
        """The answers in the order of `requests`.

        Args:
            on_done: told after each batch which requests (by number) are answered, and how.
        """
        ...

    def generate(
        self,
        requests: Sequence[GenerationRequest],
        on_done: Callable[[int, Sequence[int]], None] = lambda number, tokens: None,
    ) -> list[list[int]]:
        """New tokens of each request in their order, an end-of-text token left out."""
        ...

    def close(self) -> None:
        """Give back what the model holds."""
        ...
