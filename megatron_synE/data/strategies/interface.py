"""What a rule for moving topic shares has to offer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Protocol

TopicShares = Mapping[str, Mapping[str, Fraction]]
"""Source → topic → share in that source."""
TopicPerplexities = Mapping[str, Mapping[str, float]]
"""Source → topic → held-out perplexity."""


@dataclass(frozen=True)
class Proposal:
    """New shares of one source's topics, and how they came about."""

    shares: Mapping[str, Fraction]
    """Topic → share; sums to 1."""
    inputs: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    """Named intermediate values per topic, for logs and the checkpoint."""


class Strategy(Protocol):
    """A rule. Foreseeable changes become segments when the run is planned; measured ones at `decide`."""

    @property
    def interval_tokens(self) -> int | None:
        """Tokens between two measurements; None when nothing is measured."""

    def scheduled(self) -> Sequence[tuple[int, TopicShares]]:
        """Changes known beforehand: tokens read, and the shares from there on of the sources named."""

    def decide(
        self, shares: TopicShares, previous: TopicPerplexities, measured: TopicPerplexities
    ) -> Mapping[str, Proposal]:
        """Proposals per source, from the shares in force and the last two measurements; the others keep their own.

        `shares` names the sources that were measured both times.
        """
