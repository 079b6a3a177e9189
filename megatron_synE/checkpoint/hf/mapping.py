"""Names and shapes: Hugging Face Llama ⇄ megatron-core's GPTModel.

    model.embed_tokens.weight                      embedding.word_embeddings.weight                    rows padded
    model.layers.N.input_layernorm.weight          decoder.layers.N.self_attention.linear_qkv.layer_norm_weight
    model.layers.N.self_attn.{q,k,v}_proj.weight   decoder.layers.N.self_attention.linear_qkv.weight   packed
    model.layers.N.self_attn.o_proj.weight         decoder.layers.N.self_attention.linear_proj.weight
    model.layers.N.post_attention_layernorm.weight decoder.layers.N.mlp.linear_fc1.layer_norm_weight
    model.layers.N.mlp.{gate,up}_proj.weight       decoder.layers.N.mlp.linear_fc1.weight              stacked
    model.layers.N.mlp.down_proj.weight            decoder.layers.N.mlp.linear_fc2.weight
    model.norm.weight                              decoder.final_layernorm.weight
    lm_head.weight                                 output_layer.weight                                 rows padded

`linear_qkv` holds, for each query group, the rows of its query heads, then of its key head, then of its value head.
Both sides turn halves of a head in RoPE, so no rows are permuted inside a head.
Legend: G query groups, R rows of one group, D channels of one head, H hidden size, F width of gate and of up.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import torch

from megatron_synE.config.model import LlamaArchitecture

VOCABULARY_NAMES = ("embedding.word_embeddings.weight", "output_layer.weight")
"""Parameters with a row for each id; the second is missing where embeddings are tied."""

Packing = Literal["plain", "vocabulary", "qkv", "gate_up"]


@dataclass(frozen=True)
class Parameter:
    """One of megatron-core's parameters and the Hugging Face tensors it is made of."""

    name: str
    """Name in a checkpoint of ours (norms: as Transformer Engine's fused layers name them)."""
    hf_names: tuple[str, ...]
    """Names in safetensors files, in packing order."""
    packing: Packing
    split_axis: int | None
    """Axis that tensor parallelism splits; none for replicated parameters."""


def parameters(architecture: LlamaArchitecture) -> Iterator[Parameter]:
    """All parameters, in the order in which a forward pass uses them."""
    yield Parameter(VOCABULARY_NAMES[0], ("model.embed_tokens.weight",), "vocabulary", 0)
    for layer in range(architecture.num_layers):
        yield from _layer(f"decoder.layers.{layer}", f"model.layers.{layer}")
    yield Parameter("decoder.final_layernorm.weight", ("model.norm.weight",), "plain", None)
    if not architecture.tie_word_embeddings:
        yield Parameter(VOCABULARY_NAMES[1], ("lm_head.weight",), "vocabulary", 0)


def _layer(own: str, hf: str) -> Iterator[Parameter]:
    attention, mlp = f"{own}.self_attention", f"{own}.mlp"
    qkv = tuple(f"{hf}.self_attn.{part}_proj.weight" for part in "qkv")
    gate_up = (f"{hf}.mlp.gate_proj.weight", f"{hf}.mlp.up_proj.weight")
    yield Parameter(f"{attention}.linear_qkv.layer_norm_weight", (f"{hf}.input_layernorm.weight",), "plain", None)
    yield Parameter(f"{attention}.linear_qkv.weight", qkv, "qkv", 0)
    yield Parameter(f"{attention}.linear_proj.weight", (f"{hf}.self_attn.o_proj.weight",), "plain", 1)
    yield Parameter(f"{mlp}.linear_fc1.layer_norm_weight", (f"{hf}.post_attention_layernorm.weight",), "plain", None)
    yield Parameter(f"{mlp}.linear_fc1.weight", gate_up, "gate_up", 0)
    yield Parameter(f"{mlp}.linear_fc2.weight", (f"{hf}.mlp.down_proj.weight",), "plain", 1)


def hf_shapes(parameter: Parameter, architecture: LlamaArchitecture) -> list[tuple[int, ...]]:
    """Shapes of the parameter's Hugging Face tensors."""
    hidden, ffn, head = architecture.hidden_size, architecture.ffn_hidden_size, architecture.head_dim
    query, key = architecture.num_attention_heads * head, architecture.num_query_groups * head
    if parameter.packing == "vocabulary":
        return [(architecture.vocab_size, hidden)]
    if parameter.packing == "qkv":
        return [(query, hidden), (key, hidden), (key, hidden)]
    if parameter.packing == "gate_up":
        return [(ffn, hidden), (ffn, hidden)]
    if parameter.split_axis is None:
        return [(hidden,)]
    return [(hidden, query if "linear_proj" in parameter.name else ffn)]


def stored_shape(parameter: Parameter, architecture: LlamaArchitecture) -> tuple[int, ...]:
    """Shape of the whole parameter in a checkpoint of ours, without padding rows."""
    shapes = hf_shapes(parameter, architecture)
    return (sum(shape[0] for shape in shapes), *shapes[0][1:])


def pack_qkv(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, num_groups: int) -> torch.Tensor:
    """`[G*heads*D, H]`, `[G*D, H]`, `[G*D, H]` → `[G*(heads+2)*D, H]`, group by group."""
    groups_GRH = [part.reshape(num_groups, -1, part.shape[-1]) for part in (q, k, v)]
    return torch.cat(groups_GRH, dim=1).reshape(-1, q.shape[-1])


def unpack_qkv(packed: torch.Tensor, num_groups: int, head_dim: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The inverse of `pack_qkv`; all three are contiguous."""
    groups_GRH = packed.reshape(num_groups, -1, packed.shape[-1])
    query_rows = groups_GRH.shape[1] - 2 * head_dim
    parts = groups_GRH.split([query_rows, head_dim, head_dim], dim=1)
    q, k, v = (part.reshape(-1, packed.shape[-1]).contiguous() for part in parts)
    return q, k, v


def to_hf(parameter: Parameter, tensor: torch.Tensor, architecture: LlamaArchitecture) -> dict[str, torch.Tensor]:
    """A whole parameter of ours → its Hugging Face tensors, without padding rows."""
    if parameter.packing == "vocabulary":
        parts: tuple[torch.Tensor, ...] = (tensor[: architecture.vocab_size].contiguous(),)
    elif parameter.packing == "qkv":
        parts = unpack_qkv(tensor, architecture.num_query_groups, architecture.head_dim)
    elif parameter.packing == "gate_up":
        gate, up = tensor.chunk(2)
        parts = (gate.contiguous(), up.contiguous())
    else:
        parts = (tensor,)
    return dict(zip(parameter.hf_names, parts, strict=True))
