"""What was asked, by what: the identity of a request, and what its answers cost."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import NamedTuple

import orjson

from megatron_synE.config.synthesis import SamplingConfig
from megatron_synE.synthesis.task import Snippet, Task


@dataclass(frozen=True)
class Settings:
    """What makes a request another request, beside the snippet and its prompt."""

    model: str
    sampling: SamplingConfig

    def fingerprint(self, task: Task) -> str:
        """Of these and the task's prompt, hexadecimal."""
        sampling = {name: getattr(self.sampling, name) for name in self.sampling.__dataclass_fields__}
        parts = [task.kind, task.fingerprint, self.model, sampling]
        return hashlib.blake2b(orjson.dumps(parts, option=orjson.OPT_SORT_KEYS), digest_size=16).hexdigest()


def request_identity(snippet: Snippet, fingerprint: str) -> str:
    """Of a snippet and ``Settings.fingerprint``: 32 hexadecimal digits."""
    text = f"{fingerprint}\0{snippet.id}\0{snippet.text}"
    return hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=16).hexdigest()


def request_seed(identity: str, attempt: int) -> int:
    """What a request is sent with, in [0, 2^31); another one for each attempt.

    Of the identity, in which the job's seed is: with one seed for all, equal prompts would have equal answers, and a
    small model would draw nearly the same for others.
    """
    return (int(identity[:8], 16) + attempt) % 2**31


class Paid(NamedTuple):
    """Tokens of one or more answers."""

    prompt_tokens: int
    completion_tokens: int

    def plus(self, other: Paid) -> Paid:
        """Of both."""
        return Paid(self.prompt_tokens + other.prompt_tokens, self.completion_tokens + other.completion_tokens)

    def to_json(self) -> dict[str, int]:
        """As a row has it."""
        return {"prompt_tokens": self.prompt_tokens, "completion_tokens": self.completion_tokens}


NOTHING_PAID = Paid(0, 0)
