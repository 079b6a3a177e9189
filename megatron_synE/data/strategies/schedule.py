"""Topic shares change at points written in the config."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from megatron_synE.config.data import SchedulePoint, exact
from megatron_synE.data.strategies.interface import Proposal, TopicPerplexities, TopicShares


class Schedule:
    """Piecewise constant shares, known before the run starts."""

    interval_tokens = None

    def __init__(self, points: Sequence[SchedulePoint]) -> None:
        self.points = points

    def scheduled(self) -> Sequence[tuple[int, TopicShares]]:
        """The points of the config."""
        return [
            (
                point.at_tokens,
                {
                    source: {topic: exact(share) for topic, share in shares.items()}
                    for source, shares in point.topic_shares.items()
                },
            )
            for point in self.points
        ]

    def decide(
        self, shares: TopicShares, previous: TopicPerplexities, measured: TopicPerplexities
    ) -> Mapping[str, Proposal]:
        """Nothing: all is known beforehand."""
        return {}
