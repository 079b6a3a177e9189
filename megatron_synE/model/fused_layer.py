"""A Llama layer on the kernels of `megatron_synE.kernels`.

Parameters, their names and their parallelism are megatron-core's; only the arithmetic between its parallel linear
layers changes. Legend: S sequence, B batch, H hidden, G query groups of this process, R query heads of a group,
D head channels, N = S * B.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from megatron.core.packed_seq_params import PackedSeqParams
from megatron.core.tensor_parallel.layers import ColumnParallelLinear, RowParallelLinear
from megatron.core.transformer.attention import SelfAttention, SelfAttentionSubmodules
from megatron.core.transformer.enums import AttnMaskType
from megatron.core.transformer.identity_op import IdentityOp
from megatron.core.transformer.mlp import MLP, MLPSubmodules
from megatron.core.transformer.spec_utils import ModuleSpec
from megatron.core.transformer.transformer_layer import TransformerLayer, TransformerLayerSubmodules

from megatron_synE.kernels import (
    add_rms_norm,
    causal_attention,
    drop_until_backward,
    rms_norm,
    rope_unpack,
    rotary_self_attention,
    swiglu,
)
from megatron_synE.model.key_value_cache import CachedTokens
from megatron_synE.model.norm import RMSNorm
from megatron_synE.model.sequence_layout import gather_sequence, sequence_layout


class FusedRMSNorm(RMSNorm):
    """RMSNorm in one pass."""

    def forward(self, hidden_SBH: torch.Tensor) -> torch.Tensor:
        return rms_norm(hidden_SBH, self.weight, self.eps)


class AddNorm(RMSNorm):
    """The norm before the MLP, with the residual addition in front of it."""

    def forward(  # type: ignore[override]
        self, update_SBH: torch.Tensor, residual_SBH: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """(norm(residual + update), residual + update)."""
        return add_rms_norm(update_SBH, residual_SBH, self.weight, self.eps)


class FusedSelfAttention(SelfAttention):
    """Self-attention that rotates Q and K inside the packed projection and never repeats K and V.

    Under context parallelism it gathers the keys and values of the whole sequence.
    """

    takes_cached_tokens = True

    def __init__(self, config: Any, *args: Any, **kwargs: Any) -> None:
        super().__init__(config, *args, **kwargs)
        if config.num_query_groups < config.tensor_model_parallel_size:
            raise ValueError(
                f"parallel.tensor_model_parallel_size: {config.tensor_model_parallel_size} is more than the "
                f"{config.num_query_groups} query groups; lower it, or use model.transformer_impl local"
            )

    def forward(
        self,
        hidden_SBH: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        *,
        rotary_pos_emb: torch.Tensor,
        packed_seq_params: PackedSeqParams | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Returns `[S, B, H]` and a bias (None). `attention_mask` is ignored: causal inside each document.

        `rotary_pos_emb` holds megatron-core's angles of all positions; with `CachedTokens`, of each token.
        """
        projected, _ = self.linear_qkv(hidden_SBH)
        seq_length, batch, _ = projected.shape
        groups, dim = self.num_query_groups_per_partition, self.hidden_size_per_attention_head
        repeats = self.num_attention_heads_per_partition // groups
        cp_group = self.pg_collection.cp
        cached = packed_seq_params if isinstance(packed_seq_params, CachedTokens) else None
        documents = packed_seq_params if cached is None else None
        layout = sequence_layout(rotary_pos_emb, documents, seq_length, batch, cp_group)
        rotary = (layout.cos_PD, layout.sin_PD, layout.positions_N)
        scale = 1 / math.sqrt(dim)
        if cached is not None:
            parts = rope_unpack(projected, *rotary, (seq_length * batch, groups, repeats + 2, dim))
            context_SBGRD = cached.attend(self.layer_number, *parts, scale)
        elif cp_group.size() == 1:
            shape_SBGJD = (seq_length, batch, groups, repeats + 2, dim)
            context_SBGRD = rotary_self_attention(projected, *rotary, shape_SBGJD, scale, layout.spans)
        else:
            parts = rope_unpack(projected, *rotary, (seq_length * batch, groups, repeats + 2, dim))
            query, *key_value = (part.unflatten(0, (seq_length, batch)) for part in parts)
            key, value = gather_sequence(torch.stack(key_value, dim=3), cp_group).unbind(3)
            context_SBGRD = causal_attention(query, key, value, scale, layout.spans)
        return self.linear_proj(context_SBGRD.reshape(seq_length, batch, -1))


class FusedMLP(MLP):
    """The gated MLP with SwiGLU in one pass, which the backward pass repeats instead of keeping its result."""

    def __init__(self, config: Any, *args: Any, recompute_activation_func: bool = True, **kwargs: Any) -> None:
        super().__init__(config, *args, **kwargs)
        # Where whole layers are computed again, nothing is kept for long.
        self.recompute_activation_func = recompute_activation_func and config.recompute_granularity != "full"

    def forward(self, hidden_SBH: torch.Tensor, **unused: Any) -> tuple[torch.Tensor, torch.Tensor | None]:
        gate_and_up, _ = self.linear_fc1(hidden_SBH)
        if not (torch.is_grad_enabled() and gate_and_up.requires_grad):
            return self.linear_fc2(swiglu(gate_and_up))
        activated = swiglu(gate_and_up, overwrite=True)
        output, bias = self.linear_fc2(activated)
        if self.recompute_activation_func and getattr(self.linear_fc2, "keeps_input", True):
            # SwiGLU again in the backward pass costs one cheap pass and saves a third of the MLP's activations.
            drop_until_backward(activated, gate_and_up, output)
        return output, bias


class FusedTransformerLayer(TransformerLayer):
    """norm, attention, add + norm, MLP, add."""

    def forward(
        self,
        hidden_states: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        rotary_pos_emb: torch.Tensor | None = None,
        packed_seq_params: PackedSeqParams | None = None,
        inference_context: Any = None,
        **unused: Any,
    ) -> tuple[torch.Tensor, None]:
        """`[S, B, H]` → `[S, B, H]`, and None where megatron-core's layer returns a cross-attention context."""
        if inference_context is not None or rotary_pos_emb is None:
            raise ValueError("model.transformer_impl: fused takes CachedTokens, no inference_context; or use local")
        attended, _ = self.self_attention(
            self.input_layernorm(hidden_states), rotary_pos_emb=rotary_pos_emb, packed_seq_params=packed_seq_params
        )
        normed, residual = self.pre_mlp_layernorm(attended, hidden_states)
        update, _ = self.mlp(normed)
        return residual + update, None


def fused_layer_spec(checkpoint_names: dict[str, str], recompute_activation_func: bool = True) -> ModuleSpec:
    """The layer above on megatron-core's tensor-parallel linear layers."""
    attention = ModuleSpec(
        module=FusedSelfAttention,
        params={"attn_mask_type": AttnMaskType.causal},
        submodules=SelfAttentionSubmodules(
            linear_qkv=ColumnParallelLinear, core_attention=IdentityOp, linear_proj=RowParallelLinear
        ),
    )
    mlp = ModuleSpec(
        module=FusedMLP,
        params={"recompute_activation_func": recompute_activation_func},
        submodules=MLPSubmodules(linear_fc1=ColumnParallelLinear, linear_fc2=RowParallelLinear),
    )
    return ModuleSpec(
        module=FusedTransformerLayer,
        submodules=TransformerLayerSubmodules(
            input_layernorm=FusedRMSNorm,
            self_attention=attention,
            pre_mlp_layernorm=AddNorm,
            mlp=mlp,
            sharded_state_dict_keys_map=checkpoint_names,
        ),
    )
