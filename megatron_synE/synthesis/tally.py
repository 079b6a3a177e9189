"""What became of snippets and what that took, per kind. Sums of sums are sums: rows, shards, processes, the job."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from megatron_synE.config.json_fields import JsonFields
from megatron_synE.config.synthesis import PricesConfig

OUTCOMES = ("accepted", "rejected", "failed")
COUNTS = (*OUTCOMES, "answers", "prompt_tokens", "completion_tokens", "accepted_tokens")


@dataclass
class Tally:
    """Counts of one kind: ``accepted``, ``rejected`` and ``failed`` snippets; ``answers`` paid for, ``prompt_tokens``
    and ``completion_tokens`` of them; ``accepted_tokens``, the completion tokens of accepted snippets, all tries.
    """

    counts: Counter[str] = field(default_factory=Counter)
    reasons: Counter[str] = field(default_factory=Counter)
    """Of rejected and failed snippets, as ``failed (content): no answer``."""

    def add(self, other: Tally) -> None:
        """Add another one's counts."""
        self.counts.update(other.counts)
        self.reasons.update(other.reasons)

    def subtract(self, other: Tally) -> None:
        """Take another one's counts away."""
        self.counts.subtract(other.counts)
        self.reasons.subtract(other.reasons)

    @property
    def settled(self) -> int:
        """Snippets that have ended."""
        return sum(self.counts[outcome] for outcome in OUTCOMES)

    @property
    def tokens(self) -> int:
        """Sent and answered."""
        return self.counts["prompt_tokens"] + self.counts["completion_tokens"]

    def cost(self, prices: PricesConfig) -> float:
        """In the prices' currency."""
        prompt = self.counts["prompt_tokens"] * prices.prompt_per_million
        return (prompt + self.counts["completion_tokens"] * prices.completion_per_million) / 1e6

    def to_json(self) -> dict[str, Any]:
        """For a file; the same for the same counts."""
        return {**{name: self.counts[name] for name in COUNTS}, "reasons": dict(sorted((+self.reasons).items()))}

    @classmethod
    def from_json(cls, fields: JsonFields) -> Tally:
        """What ``to_json`` gave; ValueError where it is damaged."""
        reasons = fields.inner("reasons")
        return cls(
            Counter({name: fields.integer(name) for name in COUNTS}),
            Counter({name: reasons.integer(name) for name in reasons.content}),
        )


class Tallies(dict[str, Tally]):
    """Kind → its tally."""

    def __missing__(self, kind: str) -> Tally:
        tally = self[kind] = Tally()
        return tally

    def add(self, others: Mapping[str, Tally]) -> None:
        """Add each kind's counts."""
        for kind, tally in others.items():
            self[kind].add(tally)

    def subtract(self, others: Mapping[str, Tally]) -> None:
        """Take each kind's counts away."""
        for kind, tally in others.items():
            self[kind].subtract(tally)

    def total(self) -> Tally:
        """Over all kinds."""
        total = Tally()
        for tally in self.values():
            total.add(tally)
        return total

    def to_json(self) -> dict[str, Any]:
        """For a file."""
        return {kind: self[kind].to_json() for kind in sorted(self)}

    @classmethod
    def from_json(cls, fields: JsonFields) -> Tallies:
        """What ``to_json`` gave; ValueError where it is damaged."""
        return cls({kind: Tally.from_json(fields.inner(kind)) for kind in fields.content})
