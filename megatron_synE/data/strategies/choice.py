"""The strategy that a config names."""

from __future__ import annotations

from megatron_synE.config.data import AdjustmentConfig
from megatron_synE.data.strategies.interface import Strategy
from megatron_synE.data.strategies.schedule import Schedule
from megatron_synE.data.strategies.static import Static
from megatron_synE.data.strategies.topic_perplexity import TopicPerplexity


def make_strategy(config: AdjustmentConfig) -> Strategy:
    """The rule of `data.adjustment.strategy`."""
    if config.strategy == "static":
        return Static()
    if config.strategy == "schedule":
        return Schedule(config.schedule)
    if config.strategy == "topic_perplexity":
        return TopicPerplexity(config)
    raise ValueError(f"data.adjustment.strategy: unknown {config.strategy!r}; use static, schedule or topic_perplexity")
