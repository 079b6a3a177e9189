"""Rules for moving shares during a run: of topics in their source, and of sources that are forgotten."""

from megatron_synE.data.strategies.choice import make_strategy
from megatron_synE.data.strategies.interface import Proposal, Strategy, TopicPerplexities, TopicShares
from megatron_synE.data.strategies.restore_share import RestoreShare
from megatron_synE.data.strategies.schedule import Schedule
from megatron_synE.data.strategies.static import Static
from megatron_synE.data.strategies.topic_perplexity import TopicPerplexity

__all__ = [
    "Proposal",
    "RestoreShare",
    "Schedule",
    "Static",
    "Strategy",
    "TopicPerplexities",
    "TopicPerplexity",
    "TopicShares",
    "make_strategy",
]
