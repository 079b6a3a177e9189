"""Topic shares stay as the config gives them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from megatron_synE.data.strategies.interface import Proposal, TopicPerplexities, TopicShares


class Static:
    """No change, ever."""

    interval_tokens = None

    def scheduled(self) -> Sequence[tuple[int, TopicShares]]:
        """Nothing."""
        return ()

    def decide(
        self, shares: TopicShares, previous: TopicPerplexities, measured: TopicPerplexities
    ) -> Mapping[str, Proposal]:
        """Nothing."""
        return {}
