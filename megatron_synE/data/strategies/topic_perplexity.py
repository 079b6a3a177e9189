"""The rule of Llama-3-SynE (arXiv 2407.18743, §3.1): more of the topics whose perplexity rises.

For each source with topics, between the measurements t-1 and t:

    Δp_i = p_i(t) - p_i(t-1)      δ_i = Δp_i / max_j |Δp_j|  (0 when all are 0)
    f_i  = 1 + α·δ_i·w_i          r_i(t) = r_i(t-1)·f_i / Σ_j r_j(t-1)·f_j

then shares outside [floor, cap] are set to the bound and the others scaled, so that the sum stays 1.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from fractions import Fraction

from megatron_synE.config.data import AdjustmentConfig
from megatron_synE.data.strategies.bounds import scaled_within
from megatron_synE.data.strategies.interface import Proposal, TopicPerplexities, TopicShares


class TopicPerplexity:
    """Shares follow the change of held-out perplexity."""

    def __init__(self, config: AdjustmentConfig) -> None:
        self.config = config

    @property
    def interval_tokens(self) -> int:
        """Tokens between two measurements."""
        return self.config.interval_tokens

    def scheduled(self) -> Sequence[tuple[int, TopicShares]]:
        """Nothing is known beforehand."""
        return ()

    def decide(
        self, shares: TopicShares, previous: TopicPerplexities, measured: TopicPerplexities
    ) -> Mapping[str, Proposal]:
        """A proposal per source."""
        return {source: self._propose(shares[source], previous[source], measured[source]) for source in shares}

    def _propose(
        self, shares: Mapping[str, Fraction], previous: Mapping[str, float], measured: Mapping[str, float]
    ) -> Proposal:
        change = {topic: measured[topic] - previous[topic] for topic in shares}
        largest = max(abs(value) for value in change.values())
        delta = {topic: value / largest if largest > 0 else 0.0 for topic, value in change.items()}
        factor = {
            topic: 1 + self.config.alpha * delta[topic] * self.config.topic_weights.get(topic, 1.0) for topic in shares
        }
        raised = {topic: share * Fraction(factor[topic]) for topic, share in shares.items()}
        total = sum(raised.values(), Fraction(0))
        new = bounded({topic: value / total for topic, value in raised.items()}, self.config.floor, self.config.cap)
        return Proposal(new, {"change": change, "delta": delta, "factor": factor})


def bounded(shares: Mapping[str, Fraction], floor: float, cap: float) -> dict[str, Fraction]:
    """The shares s·r_i cut to [floor, cap] with the one scale s that makes their sum 1; a share of 0 stays 0.

    ValueError when the bounds leave no such shares.
    """
    low, high = Fraction(str(floor)), Fraction(str(cap))
    free = [topic for topic, share in shares.items() if share > 0]
    if not len(free) * low <= 1 <= len(free) * high:
        raise ValueError(
            f"data.adjustment.floor, cap: {len(free)} topics with shares in [{floor}, {cap}] cannot sum to 1; "
            f"use a floor of at most {1 / len(free):.4g} and a cap of at least that"
        )
    return scaled_within(shares, dict.fromkeys(free, low), dict.fromkeys(free, high), Fraction(1))
