"""Who continues prompts as text: the engine that scores, or another one beside it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Protocol

from megatron_synE.evaluation.encoding import RequestEncoder
from megatron_synE.evaluation.engine import Engine, GenerationRequest

SLACK_TOKENS = 4
"""Tokens before a stop string's longest form whose bytes may belong to its first character."""


class Prompt(NamedTuple):
    """A text that is to be continued greedily."""

    ids: tuple[int, ...]
    stops: tuple[str, ...]
    """The continuation ends before the first of these."""
    max_new_tokens: int


class Generator(Protocol):
    """What continues prompts."""

    def info(self) -> dict[str, Any]:
        """What determines its answers, JSON-able."""
        ...

    def generate(self, prompts: Sequence[Prompt], on_done: Callable[[int, str], None]) -> None:
        """Continue all; `on_done` is told the number of each prompt and its continuation, cut before its stop."""
        ...

    def close(self) -> None:
        """Give back what it holds."""
        ...


class EngineGenerator:
    """Continues by an engine's most probable tokens."""

    def __init__(self, engine: Engine, encoder: RequestEncoder) -> None:
        self.engine, self._encoder = engine, encoder

    def info(self) -> dict[str, Any]:
        """See Generator."""
        return self.engine.info()

    def generate(self, prompts: Sequence[Prompt], on_done: Callable[[int, str], None]) -> None:
        """See Generator."""
        requests = [
            GenerationRequest(prompt.ids, prompt.max_new_tokens, self._is_finished(prompt.stops)) for prompt in prompts
        ]
        self.engine.generate(
            requests,
            lambda number, ids: on_done(number, cut(self._encoder.decode(ids), prompts[number].stops)),
        )

    def close(self) -> None:
        """See Generator."""
        self.engine.close()

    def _is_finished(self, stops: Sequence[str]) -> Callable[[Sequence[int]], bool]:
        """Whether a stop is in the text of the new tokens; only the last ones can have brought it."""
        num_tokens = max((len(stop.encode()) for stop in stops), default=0) + SLACK_TOKENS

        def is_finished(ids: Sequence[int]) -> bool:
            text = self._encoder.decode(ids[-num_tokens:])
            return any(stop in text for stop in stops)

        return is_finished


def cut(text: str, stops: Sequence[str]) -> str:
    """A continuation without its first stop and what follows."""
    for stop in stops:
        text = text.split(stop, 1)[0]
    return text
