"""LlamaModel on our kernels: the output projection and the loss in one op, the embedding's gradient in place.

Legend: S sequence, B batch, N = S * B, H hidden, V this process's part of the padded vocabulary.
"""

from __future__ import annotations

from typing import Any

import torch
from megatron.core.tensor_parallel.layers import ColumnParallelLinear, VocabParallelEmbedding
from megatron.core.tensor_parallel.mappings import (
    copy_to_tensor_model_parallel_region,
    gather_from_sequence_parallel_region,
    reduce_from_tensor_model_parallel_region,
    reduce_scatter_to_sequence_parallel_region,
)

from megatron_synE.kernels import linear_cross_entropy, placeholder_gradient
from megatron_synE.kernels.weight_gradient import holder_of_main_grad
from megatron_synE.model.llama import LlamaModel


class FusedLlamaModel(LlamaModel):
    """LlamaModel that never holds the logits of a whole micro-batch while it trains."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        # The layers look up each token's position in the table of the whole sequence.
        self.rotary_pos_emb.cp_group = None
        # GPTModel names the classes of both ends itself. They keep their weights and their place in the module tree
        # (the data-parallel wrapper hooks modules), and only compute differently.
        if self.pre_process:
            self.embedding.word_embeddings.__class__ = FusedVocabParallelEmbedding
            self.embedding.word_embeddings.fuse = self.config.gradient_accumulation_fusion
            self.embedding.word_embeddings.weight.has_sparse_gradient = (
                self.config.gradient_accumulation_fusion and not self.share_embeddings_and_output_weights
            )
        if self.post_process:
            self.output_layer.__class__ = LossLayer

    def _postprocess(self, hidden_states: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        labels_BS, loss_mask_BS = kwargs.get("labels"), kwargs.get("loss_mask")
        if not self.post_process or not isinstance(labels_BS, torch.Tensor):
            return super()._postprocess(hidden_states, *args, **kwargs)
        weight = self.shared_embedding_or_output_weight() if self.share_embeddings_and_output_weights else None
        mask_BS = torch.ones_like(labels_BS, dtype=torch.float32) if loss_mask_BS is None else loss_mask_BS
        return self.output_layer(
            hidden_states, weight=weight, labels=labels_BS, loss_mask=mask_BS, vocab_size=self.unpadded_vocab_size
        )


class LossLayer(ColumnParallelLinear):
    """The output projection; given labels, it returns token losses instead of logits."""

    def forward(
        self,
        input_: torch.Tensor,
        weight: torch.Tensor | None = None,
        runtime_gather_output: bool | None = None,
        *,
        labels: torch.Tensor | None = None,
        loss_mask: torch.Tensor | None = None,
        vocab_size: int = 0,
    ) -> Any:
        """`[S, B, H]` hidden states → `[B, S]` fp32 token losses (0 where masked), or what the base class returns.

        The losses may only be summed with weights proportional to `loss_mask`: their gradient exists for that sum.
        """
        if labels is None or loss_mask is None:
            return super().forward(input_, weight, runtime_gather_output)
        if self.sequence_parallel:
            hidden_SBH = gather_from_sequence_parallel_region(
                input_, tensor_parallel_output_grad=True, group=self.tp_group
            )
        else:
            hidden_SBH = copy_to_tensor_model_parallel_region(input_, group=self.tp_group)
        batch, seq_length = labels.shape
        mask_N = loss_mask.t().reshape(-1).float()
        loss, token_loss_N = linear_cross_entropy(
            hidden_SBH.reshape(-1, hidden_SBH.shape[-1]),
            self.weight if weight is None else weight,
            labels.t().reshape(-1),
            mask_N,
            vocab_size,
            group=self.tp_group if self.tp_group.size() > 1 else None,
            accumulate_into_main_grad=self.gradient_accumulation_fusion,
        )
        return _TokenLosses.apply(loss, token_loss_N, mask_N).view(seq_length, batch).t()


class _TokenLosses(torch.autograd.Function):
    """Token losses whose gradient, a multiple of the mask, becomes the gradient of their masked sum."""

    @staticmethod
    def forward(ctx, loss: torch.Tensor, token_loss_N: torch.Tensor, mask_N: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(mask_N)
        return token_loss_N.clone()

    @staticmethod
    def backward(ctx, gradient_N: torch.Tensor):
        (mask_N,) = ctx.saved_tensors
        # All quotients are equal where the mask is not 0; one of the largest magnitude is taken, 0 if all is masked.
        multiple = torch.where(mask_N != 0, gradient_N / mask_N, 0.0)
        if multiple.numel() == 0:
            return gradient_N.sum(), None, None
        # take, for an index in brackets would be brought to the host.
        return multiple.take(multiple.abs().argmax()), None, None


class FusedVocabParallelEmbedding(VocabParallelEmbedding):
    """The embedding; its gradient goes to the rows of the main gradient that were looked up, and to no others."""

    fuse: bool = False

    def forward(self, input_: torch.Tensor) -> torch.Tensor:
        if not (self.fuse and hasattr(self.weight, "main_grad")):
            return super().forward(input_)
        ids_BS = input_ - self.vocab_start_index
        owned_BS = (ids_BS >= 0) & (ids_BS < self.num_embeddings_per_partition)
        ids_BS = torch.where(owned_BS, ids_BS, 0)
        embedded_BSH = _Embed.apply(self.weight, ids_BS, owned_BS)
        if self.reduce_scatter_embeddings:
            return reduce_scatter_to_sequence_parallel_region(
                embedded_BSH.transpose(0, 1).contiguous(), group=self.tp_group
            )
        return reduce_from_tensor_model_parallel_region(embedded_BSH, group=self.tp_group)


class _Embed(torch.autograd.Function):
    @staticmethod
    def forward(ctx, weight: torch.Tensor, ids_BS: torch.Tensor, owned_BS: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(weight, ids_BS, owned_BS)
        ctx.main_grad = holder_of_main_grad(weight).main_grad
        return torch.nn.functional.embedding(ids_BS, weight) * owned_BS.unsqueeze(-1)

    @staticmethod
    def backward(ctx, gradient_BSH: torch.Tensor):
        weight, ids_BS, owned_BS = ctx.saved_tensors
        rows_NH = (gradient_BSH * owned_BS.unsqueeze(-1)).reshape(-1, gradient_BSH.shape[-1])
        ctx.main_grad.index_add_(0, ids_BS.reshape(-1), rows_NH.to(ctx.main_grad.dtype))
        weight.main_grad = ctx.main_grad
        return placeholder_gradient(weight), None, None
