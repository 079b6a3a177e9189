from __future__ import annotations

import dataclasses

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from megatron_synE.checkpoint.hf.mapping import hf_shapes, pack_qkv, parameters, to_hf, unpack_qkv
from megatron_synE.config.model import PRESETS, LlamaArchitecture

SMALL = st.integers(1, 4)


@given(groups=SMALL, heads_per_group=SMALL, head_dim=SMALL, hidden=SMALL)
@settings(max_examples=50, deadline=None)
def test_packing_keeps_each_group_together(groups: int, heads_per_group: int, head_dim: int, hidden: int) -> None:
    rows = torch.arange(groups * (heads_per_group + 2) * head_dim * hidden, dtype=torch.float32).reshape(-1, hidden)
    q, k, v = rows.split([groups * heads_per_group * head_dim, groups * head_dim, groups * head_dim])
    packed = pack_qkv(q, k, v, groups)
    assert packed.shape == rows.shape
    of_first_group = packed[: (heads_per_group + 2) * head_dim]
    assert torch.equal(of_first_group, torch.cat([q[: heads_per_group * head_dim], k[:head_dim], v[:head_dim]]))
    for part, back in zip((q, k, v), unpack_qkv(packed, groups, head_dim), strict=True):
        assert torch.equal(part, back)


def test_a_tensor_parallel_shard_is_a_block_of_rows() -> None:
    """What makes slices of the HF tensors equal slices of the packed one."""
    q, k, v = torch.randn(16, 3), torch.randn(8, 3), torch.randn(8, 3)  # 4 groups, 2 heads each, 2 channels
    whole = pack_qkv(q, k, v, num_groups=4)
    halves = [pack_qkv(q[8 * r : 8 * r + 8], k[4 * r : 4 * r + 4], v[4 * r : 4 * r + 4], 2) for r in range(2)]
    assert torch.equal(torch.cat(halves), whole)


def test_every_weight_of_an_hf_model_is_named_once() -> None:
    architecture = LlamaArchitecture(2, 32, 48, 4, 2, 50)
    from transformers import LlamaConfig, LlamaForCausalLM

    with torch.device("meta"):
        model = LlamaForCausalLM(LlamaConfig(
            vocab_size=50, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
            num_key_value_heads=2,
        ))  # fmt: skip
    expected = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    found: dict[str, tuple[int, ...]] = {}
    for parameter in parameters(architecture):
        found.update(zip(parameter.hf_names, hf_shapes(parameter, architecture), strict=True))
    assert found == expected


def test_sizes_add_up() -> None:
    for architecture in PRESETS.values():
        shapes = [shape for parameter in parameters(architecture) for shape in hf_shapes(parameter, architecture)]
        assert sum(torch.Size(shape).numel() for shape in shapes) == architecture.num_parameters()


def test_tied_models_have_no_output_layer() -> None:
    tied = dataclasses.replace(PRESETS["llama3_tiny"], tie_word_embeddings=True)
    assert "output_layer.weight" not in {parameter.name for parameter in parameters(tied)}


def test_padding_rows_are_dropped() -> None:
    architecture = LlamaArchitecture(1, 4, 8, 2, 1, vocab_size=5)
    embedding = next(iter(parameters(architecture)))
    padded = torch.arange(32, dtype=torch.float32).reshape(8, 4)
    assert torch.equal(to_hf(embedding, padded, architecture)["model.embed_tokens.weight"], padded[:5])
