"""Transformer Engine's buffers for `parallel.tp_comm_overlap`."""

from __future__ import annotations

from megatron_synE.config.model import LlamaArchitecture
from megatron_synE.config.parallel import ParallelConfig
from megatron_synE.config.precision import PrecisionConfig


def allocate_tp_comm_buffers(
    architecture: LlamaArchitecture, parallel: ParallelConfig, precision: PrecisionConfig, *, tokens_per_microbatch: int
) -> None:
    """Buffers that the tensor-parallel processes write into beside their products; once, before the first step.

    megatron-core turns the overlap on in Transformer Engine's layers, and leaves this to whoever trains.

    Args:
        tokens_per_microbatch: of a context-parallel process.
    """
    from transformer_engine.pytorch.module import base

    base.initialize_ub(
        shape=[tokens_per_microbatch, architecture.hidden_size],
        tp_size=parallel.tensor_model_parallel_size,
        use_fp8=precision.fp8 != "none",
        bootstrap_backend="nccl",
    )
