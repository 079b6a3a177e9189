"""The stream of training samples: components, curriculum, mixture, live adjustment and ledger."""

from megatron_synE.data.batches import Batch
from megatron_synE.data.heldout import HeldoutSet
from megatron_synE.data.ledger import documents_read, ledger, sample_read
from megatron_synE.data.preflight import preflight
from megatron_synE.data.state import Decision
from megatron_synE.data.stream import DataStream

__all__ = ["Batch", "DataStream", "Decision", "HeldoutSet", "documents_read", "ledger", "preflight", "sample_read"]
