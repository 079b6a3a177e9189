"""Rules for moving topic shares during a run."""

from megatron_synE.data.strategies.choice import make_strategy
from megatron_synE.data.strategies.interface import Proposal, Strategy, TopicPerplexities, TopicShares
from megatron_synE.data.strategies.schedule import Schedule
from megatron_synE.data.strategies.static import Static
from megatron_synE.data.strategies.topic_perplexity import TopicPerplexity

__all__ = [
    "Proposal",
    "Schedule",
    "Static",
    "Strategy",
    "TopicPerplexities",
    "TopicPerplexity",
    "TopicShares",
    "make_strategy",
]
