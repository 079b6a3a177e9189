"""megatron-core's data-parallel wrapper and optimizer around the model chunks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from megatron.core import parallel_state
from megatron.core.distributed import DistributedDataParallel, DistributedDataParallelConfig, finalize_model_grads
from megatron.core.optimizer import ChainedOptimizer, get_megatron_optimizer
from megatron.core.optimizer.optimizer_config import OptimizerConfig as MegatronOptimizerConfig
from megatron.core.utils import get_model_config

from megatron_synE.config.optimizer import OptimizerConfig
from megatron_synE.config.parallel import ParallelConfig
from megatron_synE.config.precision import PrecisionConfig
from megatron_synE.model.megatron_hooks import (
    build_precision_aware_optimizer,
    install_fused_optimizer,
    install_sparse_gradients,
)

_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


def wrap_data_parallel(
    model_chunks: Sequence[torch.nn.Module], parallel: ParallelConfig, precision: PrecisionConfig
) -> list[DistributedDataParallel]:
    """Flat gradient buffers, reduced over the data-parallel processes; all start from the first one's weights."""
    ddp_config = DistributedDataParallelConfig(
        grad_reduce_in_fp32=precision.grad_reduce_in_fp32,
        overlap_grad_reduce=parallel.overlap_grad_reduce,
        overlap_param_gather=parallel.overlap_param_gather,
        align_param_gather=parallel.align_param_gather,
        bucket_size=parallel.ddp_bucket_size,
        pad_buckets_for_high_nccl_busbw=parallel.ddp_pad_buckets_for_high_nccl_busbw,
        use_distributed_optimizer=parallel.use_distributed_optimizer,
        check_for_nan_in_grad=False,  # the step looks at the gradient norm, once, after the reduction
    )
    wrapped = [
        DistributedDataParallel(
            config=get_model_config(chunk),
            ddp_config=ddp_config,
            module=chunk,
            # Later chunks' gradients arrive first; only the first chunk's reduction overlaps well in buckets.
            disable_bucketing=number > 0,
        )
        for number, chunk in enumerate(model_chunks)
    ]
    for chunk in wrapped:
        chunk.broadcast_params()
        install_sparse_gradients(chunk.buffers)
    return wrapped


def build_optimizer(
    model_chunks: list[DistributedDataParallel], optimizer: OptimizerConfig, parallel: ParallelConfig,
    precision: PrecisionConfig,
) -> ChainedOptimizer:  # fmt: skip
    """AdamW with fp32 main parameters; norms do not decay. Connects the chunks' gradient hooks to the schedules."""
    config = MegatronOptimizerConfig(
        optimizer="adam",
        lr=optimizer.lr,
        min_lr=0.0,
        weight_decay=optimizer.weight_decay,
        adam_beta1=optimizer.adam_beta1,
        adam_beta2=optimizer.adam_beta2,
        adam_eps=optimizer.adam_eps,
        clip_grad=optimizer.clip_grad,
        bf16=precision.dtype == "bf16",
        params_dtype=_DTYPES[precision.dtype],
        use_distributed_optimizer=parallel.use_distributed_optimizer,
        overlap_param_gather=parallel.overlap_param_gather,
    )
    if optimizer.use_precision_aware_optimizer:
        megatron_optimizer = build_precision_aware_optimizer(
            config,
            model_chunks,
            exp_avg_dtype=_DTYPES[optimizer.exp_avg_dtype],
            exp_avg_sq_dtype=_DTYPES[optimizer.exp_avg_sq_dtype],
            main_grads_dtype=torch.float32 if precision.grad_reduce_in_fp32 else torch.bfloat16,
            store_param_remainders=optimizer.store_param_remainders,
        )
    else:
        megatron_optimizer = get_megatron_optimizer(config, model_chunks)
    install_fused_optimizer(megatron_optimizer)
    model_config = get_model_config(model_chunks[0])
    model_config.grad_scale_func = megatron_optimizer.scale_loss
    model_config.finalize_model_grads_func = finalize_gradients
    if parallel.overlap_grad_reduce:
        model_config.no_sync_func = _one_or_all([chunk.no_sync for chunk in model_chunks])
    if parallel.align_grad_reduce:
        model_config.grad_sync_func = [chunk.start_grad_sync for chunk in model_chunks]
    if parallel.align_param_gather:
        model_config.param_sync_func = [chunk.start_param_sync for chunk in model_chunks]
    return megatron_optimizer


def finalize_gradients(
    model_chunks: list[DistributedDataParallel], num_tokens: torch.Tensor, **arguments: Any
) -> None:
    """megatron-core's finalize_model_grads; gradients are divided by the valid tokens of the whole global batch.

    The division is here because megatron-core asks the host first whether there are any tokens, and the host would wait
    for the whole backward pass to answer. Without tokens there is nothing but zeros to divide.

    Args:
        num_tokens: int scalar, of this process's micro-batches; counts on the last pipeline stage.
    """
    finalize_model_grads(model_chunks, None, **arguments)
    last = parallel_state.get_pipeline_model_parallel_last_rank()
    torch.distributed.broadcast(num_tokens, src=last, group=parallel_state.get_pipeline_model_parallel_group())
    torch.distributed.all_reduce(num_tokens, group=parallel_state.get_data_parallel_group(with_context_parallel=True))
    factor = 1.0 / num_tokens.clamp(min=1)
    for chunk in model_chunks:
        chunk.scale_gradients(factor)


def set_learning_rate(optimizer: ChainedOptimizer, learning_rate: float) -> None:
    """Give every parameter group this learning rate."""
    for group in optimizer.param_groups:
        group["lr"] = learning_rate


def _one_or_all(functions: list) -> object:
    return functions[0] if len(functions) == 1 else functions
