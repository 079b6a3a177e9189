"""The output projection and the cross entropy in one op, over a vocabulary that may be split over a process group.

The logits exist one chunk of tokens at a time. The forward pass already computes the gradients of the summed loss
(the chunk's logits are there, so no second projection is needed); the backward pass scales them. Where the weight has
a main gradient, its part goes there in the forward pass already, and a gradient of the weight's size is never held.

Legend: N tokens, C tokens of a chunk, H hidden, V vocabulary rows of this shard.
"""

from __future__ import annotations

from enum import IntEnum
from typing import Any

import torch
import torch.distributed as dist

from megatron_synE.kernels import reference
from megatron_synE.kernels._native import address, code, launch
from megatron_synE.kernels.op import kernel_op
from megatron_synE.kernels.product import product
from megatron_synE.kernels.selection import is_compiled, require_one_device
from megatron_synE.kernels.weight_gradient import accumulate_, holder_of_main_grad, placeholder_gradient

# Of one chunk's logits on the host: large enough for efficient products, small enough to stay near the cores' caches.
HOST_CHUNK_BYTES = 32 * 2**20
# Of a GPU's memory. The fewer chunks, the fewer passes over the weight and its gradient: 1.2 GiB of 80, 2.2 of 141.
GPU_CHUNK_SHARE = 1 / 64


class _Pass(IntEnum):
    """What the kernel does; csrc/cpu/kernels.h has the same numbers."""

    STATS = 0
    GRADIENT = 1
    BOTH = 2


def linear_cross_entropy(
    hidden_NH: torch.Tensor,
    weight_VH: torch.Tensor,
    labels_N: torch.Tensor,
    loss_mask_N: torch.Tensor,
    vocab_size: int,
    *,
    group: dist.ProcessGroup | None = None,
    accumulate_into_main_grad: bool = False,
    chunk_tokens: int | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Cross entropy of `hidden @ weight.T` against `labels`, without the logits.

    Args:
        hidden_NH: fp32 or bf16.
        weight_VH: this rank's rows of the output matrix; every rank of `group` has as many.
        labels_N: int64 ids of the whole vocabulary, in [0, vocab_size) where the token counts.
        loss_mask_N: weight of each token in the sum; where 0, the token adds nothing to loss or gradient.
        vocab_size: rows of the whole vocabulary that exist; later ones are padding and get no probability.
        group: tensor-parallel group over which the vocabulary is split, in rank order.
        accumulate_into_main_grad: add the weight's gradient to `weight.main_grad` where that is fp32, as
            megatron-core's gradient_accumulation_fusion does, and hand autograd a placeholder. The loss must then be
            back-propagated once, with gradient 1 (a sum of losses, without loss scaling); another gradient raises.
        chunk_tokens: tokens whose logits exist at a time; by default from `_chunk_bytes`.

    Returns:
        (sum of mask * loss, fp32 scalar, differentiable; loss per token, fp32 [N], 0 where masked, a constant).
        The gradient of hidden is this shard's part: under tensor parallelism it still has to be summed over the
        group, which megatron-core's copy_to_tensor_model_parallel_region does for its input.
    """
    tokens, width = hidden_NH.shape
    if weight_VH.dim() != 2 or weight_VH.shape[1] != width or weight_VH.dtype != hidden_NH.dtype:
        raise ValueError(
            f"weight {tuple(weight_VH.shape)} {weight_VH.dtype} does not fit hidden {tuple(hidden_NH.shape)} "
            f"{hidden_NH.dtype}: want [vocabulary, {width}] of one dtype"
        )
    if labels_N.shape != (tokens,) or loss_mask_N.shape != (tokens,) or labels_N.dtype != torch.int64:
        raise ValueError(f"labels (int64) and loss_mask must be [{tokens}], one entry a token")
    operands = {"hidden": hidden_NH, "weight": weight_VH, "labels": labels_N, "loss_mask": loss_mask_N}
    require_one_device("linear_cross_entropy", **operands)
    shards = 1 if group is None else dist.get_world_size(group)
    if not 0 < vocab_size <= weight_VH.shape[0] * shards:
        raise ValueError(f"vocab_size {vocab_size} is not within the {weight_VH.shape[0]} x {shards} rows of weight")
    if not is_compiled("linear_cross_entropy", hidden_NH, weight_VH):
        return reference.linear_cross_entropy(hidden_NH, weight_VH, labels_N, loss_mask_N, vocab_size, group)
    if chunk_tokens is None:
        chunk_tokens = max(1, _chunk_bytes(hidden_NH.device) // (weight_VH.shape[0] * hidden_NH.element_size()))
    wants_gradient = torch.is_grad_enabled() and (hidden_NH.requires_grad or weight_VH.requires_grad)
    group_name = "" if group is None else group.group_name
    arguments = (labels_N, loss_mask_N.float(), vocab_size, group_name, chunk_tokens)
    main_grad = getattr(weight_VH, "main_grad", None)
    if accumulate_into_main_grad and wants_gradient and main_grad is not None and main_grad.dtype == torch.float32:
        return _IntoMainGrad.apply(hidden_NH, weight_VH, *arguments)
    loss, token_loss, _, _ = _linear_cross_entropy(hidden_NH, weight_VH, *arguments, wants_gradient)
    return loss, token_loss


def _chunk_bytes(device: torch.device) -> int:
    if device.type == "cpu":
        return HOST_CHUNK_BYTES
    return int(torch.cuda.get_device_properties(device).total_memory * GPU_CHUNK_SHARE)


@kernel_op("syne::linear_cross_entropy")
def _linear_cross_entropy(
    hidden_NH: torch.Tensor,
    weight_VH: torch.Tensor,
    labels_N: torch.Tensor,
    loss_mask_N: torch.Tensor,
    vocab_size: int,
    group_name: str,
    chunk_tokens: int,
    wants_gradient: bool,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    dweight = hidden_NH.new_empty(0)
    if wants_gradient:
        # Chunks add up in fp32; a single one is rounded once, as a plain product is.
        dtype = torch.float32 if hidden_NH.shape[0] > chunk_tokens else weight_VH.dtype
        dweight = torch.zeros_like(weight_VH, dtype=dtype, memory_format=torch.contiguous_format)
    arguments = (labels_N, loss_mask_N, vocab_size, group_name, chunk_tokens)
    token_loss, dhidden = _all_chunks(hidden_NH, weight_VH, *arguments, dweight if wants_gradient else None)
    return (token_loss * loss_mask_N).sum(), token_loss, dhidden, dweight


def _all_chunks(
    hidden_NH: torch.Tensor,
    weight_VH: torch.Tensor,
    labels_N: torch.Tensor,
    loss_mask_N: torch.Tensor,
    vocab_size: int,
    group_name: str,
    chunk_tokens: int,
    dweight_VH: torch.Tensor | None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Token losses, and the gradient of hidden; adds that of the weight to `dweight_VH` where there is one."""
    hidden, weight = hidden_NH.contiguous(), weight_VH.contiguous()
    group = _group_named(group_name) if group_name else None
    tokens, shard = hidden.shape[0], weight.shape[0]
    start = dist.get_rank(group) * shard if group is not None else 0
    valid = max(0, min(shard, vocab_size - start))
    labels = labels_N - start
    token_loss = torch.empty(tokens, dtype=torch.float32, device=hidden.device)
    dhidden = hidden.new_empty(0) if dweight_VH is None else torch.empty_like(hidden)
    for begin in range(0, tokens, chunk_tokens):
        chunk = slice(begin, min(begin + chunk_tokens, tokens))
        logits = product(hidden[chunk], weight.t())
        mask = loss_mask_N[chunk].contiguous()
        maximum, total, target = _softmax(logits, labels[chunk], mask, valid, group, dweight_VH is not None)
        token_loss[chunk] = torch.where(mask != 0, total.log() + maximum - target, 0.0)
        if dweight_VH is None:
            continue
        dhidden[chunk] = product(logits, weight)
        if dweight_VH.dtype == torch.float32:
            accumulate_(dweight_VH, hidden[chunk], logits)
        else:
            torch.mm(logits.t(), hidden[chunk], out=dweight_VH)
        del logits  # before the next chunk's take its place
    return token_loss, dhidden


def _group_named(name: str) -> dist.ProcessGroup:
    """Custom ops take no process group, so it travels by its name, as torch's functional collectives do it."""
    resolve: Any = dist.distributed_c10d._resolve_process_group
    return resolve(name)


def _softmax(
    logits: torch.Tensor,
    targets: torch.Tensor,
    scale: torch.Tensor,
    valid: int,
    group: dist.ProcessGroup | None,
    gradient: bool,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Maximum, sum of exp(logit - maximum) and target logit of each row, over all shards of the vocabulary.

    With `gradient`, (softmax - onehot) * scale replaces the logits.
    """
    rows = logits.shape[0]
    maximum, total, target = torch.empty(3, rows, dtype=torch.float32, device=logits.device).unbind(0)

    def run(what: _Pass) -> None:
        pointers = tuple(map(address, (targets, scale, maximum, total, target)))
        sizes = (rows, logits.shape[1], valid, logits.stride(0))
        launch("cross_entropy", logits.device, code(logits), address(logits), what, *pointers, *sizes)

    if group is None:
        run(_Pass.BOTH if gradient else _Pass.STATS)
        return maximum, total, target
    run(_Pass.STATS)
    global_maximum = maximum.clone()
    dist.all_reduce(global_maximum, op=dist.ReduceOp.MAX, group=group)
    sums = torch.stack((total * (maximum - global_maximum).exp(), target))
    dist.all_reduce(sums, group=group)
    maximum, total, target = global_maximum, sums[0], sums[1]
    if gradient:
        run(_Pass.GRADIENT)
    return maximum, total, target


@_linear_cross_entropy.register_fake
def _(hidden, weight, labels, loss_mask, vocab_size, group_name, chunk_tokens, wants_gradient):
    token_loss = hidden.new_empty(hidden.shape[0], dtype=torch.float32)
    if not wants_gradient:
        return token_loss.new_empty(()), token_loss, hidden.new_empty(0), hidden.new_empty(0)
    dtype = torch.float32 if hidden.shape[0] > chunk_tokens else weight.dtype
    return token_loss.new_empty(()), token_loss, torch.empty_like(hidden), torch.empty_like(weight, dtype=dtype)


def _save(ctx, inputs, output) -> None:
    _, token_loss, dhidden, dweight = output
    ctx.mark_non_differentiable(token_loss, dhidden, dweight)
    ctx.save_for_backward(dhidden, dweight)
    ctx.weight_dtype = inputs[1].dtype


def _backward(ctx, grad_loss, *_):
    dhidden, dweight = ctx.saved_tensors
    return dhidden * grad_loss, (dweight * grad_loss).to(ctx.weight_dtype), *[None] * 6


_linear_cross_entropy.register_autograd(_backward, setup_context=_save)


class _IntoMainGrad(torch.autograd.Function):
    """The op with the weight's gradient going straight to its main gradient, in the forward pass."""

    @staticmethod
    def forward(ctx, hidden_NH, weight_VH, labels_N, loss_mask_N, vocab_size, group_name, chunk_tokens):
        main_grad = holder_of_main_grad(weight_VH).main_grad
        assert main_grad.is_contiguous(), "a view of megatron-core's flat gradient buffer"
        arguments = (labels_N, loss_mask_N, vocab_size, group_name, chunk_tokens)
        token_loss, dhidden = _all_chunks(hidden_NH, weight_VH, *arguments, main_grad)
        ctx.save_for_backward(weight_VH, dhidden)
        ctx.main_grad = main_grad
        ctx.mark_non_differentiable(token_loss)
        return (token_loss * loss_mask_N).sum(), token_loss

    @staticmethod
    def backward(ctx, grad_loss, _):
        weight, dhidden = ctx.saved_tensors
        torch._assert_async(
            grad_loss == 1, "linear_cross_entropy: accumulate_into_main_grad needs a loss with gradient 1"
        )
        holder_of_main_grad(weight).main_grad = ctx.main_grad
        return dhidden, placeholder_gradient(weight), None, None, None, None, None
