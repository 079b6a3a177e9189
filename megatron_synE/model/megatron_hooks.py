"""Our kernels behind the names through which megatron-core calls NVIDIA's Apex.

Only where neither Apex nor Transformer Engine is installed: megatron-core then has slower fallbacks, or none.
"""

from __future__ import annotations

from typing import Any

import torch

from megatron_synE.kernels import FusedAdamW, l2_norm, scale_, weight_gradient


def install_gradient_accumulation_fusion() -> str:
    """Make megatron-core's gradient_accumulation_fusion available; returns whose it is, and why."""
    from megatron.core.tensor_parallel import layers

    if layers._grad_accum_fusion_available and layers.fused_weight_gradient_mlp_cuda is not weight_gradient:
        return "Apex (installed)"
    layers.fused_weight_gradient_mlp_cuda = weight_gradient
    layers._grad_accum_fusion_available = True
    return "ours (Apex is not installed)"


def install_fused_optimizer(megatron_optimizer: Any) -> str:
    """Use our AdamW, norm and clipping inside a megatron-core optimizer; returns whose they are, and why."""
    from megatron.core.optimizer import clip_grads

    chained = getattr(megatron_optimizer, "chained_optimizers", [megatron_optimizer])
    inner = [optimizer.optimizer for optimizer in chained if optimizer.optimizer is not None]
    if any(type(optimizer) not in (torch.optim.AdamW, FusedAdamW) for optimizer in inner):
        return "Apex or Transformer Engine (installed)"
    for optimizer in inner:
        FusedAdamW.adopt(optimizer)
    clip_grads.l2_norm_impl = _l2_norm
    clip_grads.multi_tensor_scale_impl = _scale
    return "ours (neither Apex nor Transformer Engine is installed)"


def _l2_norm(
    chunk_size: int, noop_flag: torch.Tensor, tensor_lists: list[list[torch.Tensor]], per_tensor: bool
) -> tuple[torch.Tensor, None]:
    """With the signature of Apex's multi_tensor_l2norm."""
    return l2_norm(tensor_lists[0], noop_flag.device), None


def _scale(chunk_size: int, noop_flag: torch.Tensor, tensor_lists: list[list[torch.Tensor]], factor: float) -> None:
    """With the signature of Apex's multi_tensor_scale: the second list becomes the first one times `factor`."""
    for source, target in zip(*tensor_lists, strict=True):
        if target is not source:
            target.copy_(source)
        scale_(target, factor)
