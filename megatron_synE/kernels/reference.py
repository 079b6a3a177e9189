"""Every op in plain torch: the oracle that the compiled kernels are tested against, and their fallback.

Any floating dtype, float64 included; differentiable by autograd. Reductions run in at least fp32.

Legend: S sequence, B batch, N tokens, H hidden, F feed-forward, V vocabulary (of this shard), G query groups,
R query heads per group, D head dimension.
"""

from __future__ import annotations

import torch
import torch.distributed as dist
import torch.nn.functional as F


def _wide(tensor: torch.Tensor) -> torch.Tensor:
    return tensor if tensor.dtype == torch.float64 else tensor.float()


def rms_norm(x_NH: torch.Tensor, weight_H: torch.Tensor, eps: float) -> torch.Tensor:
    """weight * x / sqrt(mean(x^2) + eps) over the last dimension; arXiv 1910.07467, equation 4."""
    wide = _wide(x_NH)
    normalised = wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + eps)
    return (normalised * _wide(weight_H)).to(x_NH.dtype)


def add_rms_norm(
    x_NH: torch.Tensor, residual_NH: torch.Tensor, weight_H: torch.Tensor, eps: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """(rms_norm(x + residual), x + residual); the sum is rounded to its dtype first."""
    summed = x_NH + residual_NH
    return rms_norm(summed, weight_H, eps), summed


def rope(
    packed_NGJD: torch.Tensor, cos_PD: torch.Tensor, sin_PD: torch.Tensor, positions_N: torch.Tensor, rotated_heads: int
) -> torch.Tensor:
    """Rotate the first `rotated_heads` of the J heads of every group; cos and sin are [positions, D / 2]."""
    rotated, untouched = packed_NGJD[:, :, :rotated_heads], packed_NGJD[:, :, rotated_heads:]
    wide_dtype = torch.float64 if packed_NGJD.dtype == torch.float64 else torch.float32
    cos = cos_PD[positions_N][:, None, None].to(wide_dtype)
    sin = sin_PD[positions_N][:, None, None].to(wide_dtype)
    first, second = rotated.to(wide_dtype).chunk(2, dim=-1)
    turned = torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1)
    return torch.cat((turned.to(packed_NGJD.dtype), untouched), dim=2)


def swiglu(x_N2F: torch.Tensor) -> torch.Tensor:
    """silu(gate) * up with gate and up concatenated, gate first; arXiv 2002.05202."""
    gate, up = _wide(x_N2F).chunk(2, dim=-1)
    return (F.silu(gate) * up).to(x_N2F.dtype)


def linear_cross_entropy(
    hidden_NH: torch.Tensor,
    weight_VH: torch.Tensor,
    labels_N: torch.Tensor,
    loss_mask_N: torch.Tensor,
    vocab_size: int,
    group: dist.ProcessGroup | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """(sum over tokens of mask * cross entropy, cross entropy per token) with the logits held whole.

    Rows of the (gathered) vocabulary from `vocab_size` on are padding. The differentiable sum is the first result;
    gradients of hidden are this shard's part.
    """
    logits = _wide(hidden_NH @ weight_VH.t())
    shard = weight_VH.shape[0]
    start = 0 if group is None else dist.get_rank(group) * shard
    valid = max(0, min(shard, vocab_size - start))
    logits = logits[:, :valid]
    with torch.no_grad():
        maximum = logits.amax(-1) if valid else logits.new_full(logits.shape[:1], -torch.inf)
        if group is not None:
            dist.all_reduce(maximum, op=dist.ReduceOp.MAX, group=group)
    shifted = logits - maximum[:, None]
    local = labels_N - start
    owned = (local >= 0) & (local < valid)
    total = shifted.exp().sum(-1)
    if valid:
        target = shifted.gather(1, local.clamp(0, valid - 1)[:, None])[:, 0] * owned
    else:
        target = total * 0.0
    if group is not None:
        total, target = _all_reduce_sum(total, group), _all_reduce_sum(target, group)
    # A masked token contributes nothing, whatever its logits and its label are.
    counted = loss_mask_N != 0
    token_loss = torch.where(counted, total.log() - target, 0.0)
    return (token_loss * loss_mask_N).sum(), token_loss.detach()


class _AllReduceSum(torch.autograd.Function):
    """Sum over the group forward; identity backward, for every rank computes the same loss from the sum."""

    @staticmethod
    def forward(ctx, value: torch.Tensor, group: dist.ProcessGroup) -> torch.Tensor:
        value = value.clone()
        dist.all_reduce(value, group=group)
        return value

    @staticmethod
    def backward(ctx, gradient: torch.Tensor):
        return gradient, None


def _all_reduce_sum(value: torch.Tensor, group: dist.ProcessGroup) -> torch.Tensor:
    return _AllReduceSum.apply(value, group)


def accumulate_weight_gradient(
    input_NI: torch.Tensor, grad_output_NO: torch.Tensor, main_grad_OI: torch.Tensor
) -> None:
    """main_grad += grad_output^T @ input, in place."""
    main_grad_OI += (grad_output_NO.t() @ input_NI).to(main_grad_OI.dtype)


def sum_of_squares(values: torch.Tensor) -> torch.Tensor:
    """fp64 `[]`."""
    return _wide(values).square().sum(dtype=torch.float64)


def split_fp32(values: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """fp32 values as bf16, rounded half up, and the int16 difference of their bits, taken as 32-bit integers.

    The pair is exact: half up makes every difference fit 16 bits, half to even would not. The largest finite values
    have an infinite bf16 half. A NaN becomes the quiet one, for rounded it could look finite.
    """
    bits = torch.where(values.isnan(), 0x7FC00000, values.view(torch.int32))
    remainder = bits.to(torch.int16)
    return ((bits - remainder) >> 16).to(torch.int16).view(torch.bfloat16), remainder


def join_fp32(high: torch.Tensor, remainder: torch.Tensor) -> torch.Tensor:
    """The fp32 values of which `split_fp32` made this bf16 and int16 pair."""
    return ((high.view(torch.int16).int() << 16) + remainder).view(torch.float32)


def adamw(
    param: torch.Tensor,
    grad: torch.Tensor,
    exp_avg: torch.Tensor,
    exp_avg_sq: torch.Tensor,
    model_param: torch.Tensor | None,
    remainder: torch.Tensor | None,
    *,
    lr: float,
    beta1: float,
    beta2: float,
    eps: float,
    weight_decay: float,
    step: int,
    grad_scale: float | torch.Tensor,
) -> None:
    """One step of AdamW in place; arXiv 1711.05101, algorithm 2, with bias correction as torch does it."""
    main = param if remainder is None else join_fp32(param, remainder)
    first, second = _wide(exp_avg), _wide(exp_avg_sq)
    scaled = grad.to(main.dtype) * grad_scale
    first.mul_(beta1).add_(scaled, alpha=1 - beta1)
    second.mul_(beta2).addcmul_(scaled, scaled, value=1 - beta2)
    denominator = (second / (1 - beta2**step)).sqrt_().add_(eps)
    main.mul_(1 - lr * weight_decay).addcdiv_(first, denominator, value=-lr / (1 - beta1**step))
    exp_avg.copy_(first)
    exp_avg_sq.copy_(second)
    if remainder is not None:
        high, low = split_fp32(main)
        param.copy_(high)
        remainder.copy_(low)
    if model_param is not None:
        model_param.copy_(param)


def causal_attention(
    query_BNSD: torch.Tensor, key_BGTD: torch.Tensor, value_BGTD: torch.Tensor, scale: float
) -> torch.Tensor:
    """Causal attention of S queries that are the last S of T positions; N query heads share G key/value heads."""
    num_queries, num_keys = query_BNSD.shape[2], key_BGTD.shape[2]
    repeats = query_BNSD.shape[1] // key_BGTD.shape[1]
    keys = key_BGTD.repeat_interleave(repeats, dim=1)
    values = value_BGTD.repeat_interleave(repeats, dim=1)
    scores = _wide(query_BNSD) @ _wide(keys).transpose(-1, -2) * scale
    mask = torch.ones(num_queries, num_keys, dtype=torch.bool, device=scores.device).tril(num_keys - num_queries)
    probabilities = torch.softmax(scores.masked_fill(~mask, -torch.inf), dim=-1)
    return (probabilities @ _wide(values)).to(query_BNSD.dtype)
