"""Our kernels behind the names through which megatron-core calls NVIDIA's Apex and Transformer Engine.

Only where what it calls is not in use (not installed, or no GPU): megatron-core then has slower fallbacks, or none.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch

from megatron_synE.kernels import (
    FusedAdamW,
    PrecisionAwareAdamW,
    clear_,
    l2_norm,
    saves_memory_when_sparse,
    scale_,
    scale_written_,
    weight_gradient,
)


def install_gradient_accumulation_fusion() -> str:
    """Make megatron-core's gradient_accumulation_fusion available; returns whose it is, and why."""
    from megatron.core.tensor_parallel import layers

    if layers._grad_accum_fusion_available and layers.fused_weight_gradient_mlp_cuda is not weight_gradient:
        return "Apex (installed)"
    layers.fused_weight_gradient_mlp_cuda = weight_gradient
    layers._grad_accum_fusion_available = True
    return "ours (Apex is not in use)"


def install_fused_optimizer(megatron_optimizer: Any) -> str:
    """Use our AdamW, norm and clipping inside a megatron-core optimizer; returns whose they are, and why."""
    from megatron.core.optimizer import clip_grads

    chained = getattr(megatron_optimizer, "chained_optimizers", [megatron_optimizer])
    inner = [optimizer.optimizer for optimizer in chained if optimizer.optimizer is not None]
    if any(type(optimizer) not in (torch.optim.AdamW, FusedAdamW, PrecisionAwareAdamW) for optimizer in inner):
        return "Apex or Transformer Engine (installed)"
    for optimizer in inner:
        if isinstance(optimizer, torch.optim.AdamW):
            FusedAdamW.adopt(optimizer)
    clip_grads.l2_norm_impl = _l2_norm
    clip_grads.multi_tensor_scale_impl = _scale
    return "ours (neither Apex nor Transformer Engine is in use)"


def install_sparse_gradients(buffers: list[Any]) -> None:
    """Give the pages of embedding gradients back where megatron-core clears its flat gradient buffers.

    A batch names a small part of the vocabulary; the other rows are zeros, which take no memory until someone writes
    them. Weights say by `has_sparse_gradient` that only the rows looked up are written.
    """
    for buffer in buffers:
        sparse = [
            parameter.main_grad
            for parameter in buffer.params
            if getattr(parameter, "has_sparse_gradient", False) and saves_memory_when_sparse(parameter.main_grad)
        ]
        if sparse:
            buffer.reset = partial(_clear_gradients, buffer, sparse)
            buffer.scale_gradients = partial(scale_written_, buffer.grad_data)


def _clear_gradients(buffer: Any, sparse: list[torch.Tensor]) -> None:
    begin = 0
    for gradient in sorted(sparse, key=torch.Tensor.storage_offset):
        first = gradient.storage_offset() - buffer.grad_data.storage_offset()
        buffer.grad_data[begin:first].zero_()
        clear_(gradient)
        begin = first + gradient.numel()
    buffer.grad_data[begin:].zero_()


def build_precision_aware_optimizer(
    config: Any,
    model_chunks: list[Any],
    *,
    exp_avg_dtype: torch.dtype,
    exp_avg_sq_dtype: torch.dtype,
    main_grads_dtype: torch.dtype,
    store_param_remainders: bool,
) -> Any:
    """megatron-core's precision-aware distributed optimizer around Transformer Engine's FusedAdam (2.1), else ours.

    The fields are set on the finished config (an OptimizerConfig with the distributed optimizer), for building it with
    them asserts Transformer Engine.
    """
    from megatron.core.optimizer import get_megatron_optimizer

    config.use_precision_aware_optimizer = True
    config.use_precision_aware_optimizer_no_fp8_or_ds_fp8 = True  # what __post_init__ makes of it without FP8 weights
    config.exp_avg_dtype = exp_avg_dtype
    config.exp_avg_sq_dtype = exp_avg_sq_dtype
    config.main_grads_dtype = main_grads_dtype
    config.store_param_remainders = store_param_remainders
    with _precision_aware_adam():
        megatron_optimizer = get_megatron_optimizer(config, model_chunks)
    for part in megatron_optimizer.chained_optimizers:
        # megatron-core leaves this to the optimizer, which is not told: main values would stay those of old weights.
        part._copy_model_params_to_main_params = partial(_copy_model_params_to_main_params, part)
    return megatron_optimizer


@contextmanager
def _precision_aware_adam() -> Iterator[None]:
    """Inside, megatron-core finds our optimizer where it looks for Transformer Engine's, unless it has that."""
    from megatron.core import optimizer as core
    from megatron.core.optimizer import distrib_optimizer

    if core.Adam.__module__.startswith("transformer_engine") and core.is_te_min_version("2.1.0"):
        yield
        return
    ours: list[tuple[Any, str, Any]] = [
        (core, "Adam", PrecisionAwareAdamW),
        (core, "USING_PYTORCH_OPTIMIZER", False),
        (core, "is_te_min_version", lambda version: True),  # asked whether store_param_remainders is an argument
        (distrib_optimizer, "Adam", PrecisionAwareAdamW),  # the class that it accepts
    ]
    theirs = [(module, name, getattr(module, name)) for module, name, _ in ours]
    try:
        for module, name, value in ours:
            setattr(module, name, value)
        yield
    finally:
        for module, name, value in theirs:
            setattr(module, name, value)


def _copy_model_params_to_main_params(megatron_optimizer: Any, state_dict: Any = None) -> None:
    """Main values that are exactly the weights; the moments stay."""
    assert state_dict is None, "main values come from the weights"
    for param, state in megatron_optimizer.optimizer.state.items():
        main = state["master_param"]
        if main.dtype == torch.int16:  # what a bf16 weight lacks of its main value
            main.zero_()
        else:
            main.copy_(param.detach())


def _l2_norm(
    chunk_size: int, noop_flag: torch.Tensor, tensor_lists: list[list[torch.Tensor]], per_tensor: bool
) -> tuple[torch.Tensor, None]:
    """With the signature of Apex's multi_tensor_l2norm."""
    return l2_norm(tensor_lists[0]), None


def _scale(chunk_size: int, noop_flag: torch.Tensor, tensor_lists: list[list[torch.Tensor]], factor: float) -> None:
    """With the signature of Apex's multi_tensor_scale: the second list becomes the first one times `factor`."""
    for source, target in zip(*tensor_lists, strict=True):
        if target is not source:
            target.copy_(source)
    scale_(tensor_lists[1], factor)
