"""The model: a Llama of a known size, or of sizes given one by one."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class RopeScaling:
    """Llama-3.1's stretching of RoPE's low frequencies (HF `rope_type: llama3`)."""

    factor: float = 8.0
    """How many times longer the context becomes."""
    low_freq_factor: float = 1.0
    """Wavelengths above original_max_position_embeddings / low_freq_factor are stretched by `factor`."""
    high_freq_factor: float = 4.0
    """Wavelengths below original_max_position_embeddings / high_freq_factor stay as they are."""
    original_max_position_embeddings: int = 8192
    """Context length of the model before the stretching, in tokens."""


@dataclass(frozen=True)
class LlamaArchitecture:
    """All sizes of one Llama model. Names are megatron-core's; HF's differ where the docstring says so."""

    num_layers: int
    """HF: num_hidden_layers."""
    hidden_size: int
    """Width of the residual stream."""
    ffn_hidden_size: int
    """Width of gate and of up. HF: intermediate_size."""
    num_attention_heads: int
    """Query heads."""
    num_query_groups: int
    """Key/value heads. HF: num_key_value_heads."""
    vocab_size: int
    """Number of token ids, without padding rows."""
    max_position_embeddings: int = 8192
    """Longest context, in tokens."""
    kv_channels: int | None = None
    """Channels of one head; hidden_size / num_attention_heads when absent. HF: head_dim."""
    rotary_base: float = 500000.0
    """Base of RoPE's frequencies. HF: rope_theta."""
    rope_scaling: RopeScaling | None = None
    """Llama-3.1's scaling, or none."""
    layernorm_epsilon: float = 1e-5
    """RMSNorm ε. HF: rms_norm_eps."""
    tie_word_embeddings: bool = False
    """The output layer uses the embedding's weight."""

    @property
    def head_dim(self) -> int:
        """Channels of one attention head."""
        return self.kv_channels or self.hidden_size // self.num_attention_heads

    def num_matmul_parameters(self) -> int:
        """Weights that take part in matrix products (all but embedding and norms), for counting FLOPs."""
        attention = self.hidden_size * self.head_dim * 2 * (self.num_attention_heads + self.num_query_groups)
        mlp = 3 * self.hidden_size * self.ffn_hidden_size
        return self.num_layers * (attention + mlp) + self.hidden_size * self.vocab_size

    def num_parameters(self) -> int:
        """All weights, without padding rows of the vocabulary."""
        norms = self.hidden_size * (2 * self.num_layers + 1)
        embedding = 0 if self.tie_word_embeddings else self.hidden_size * self.vocab_size
        return self.num_matmul_parameters() + embedding + norms

    def train_flops_per_token(self, seq_length: int) -> float:
        """FLOPs of forward and backward for one token: 6 per matmul weight, and causal attention.

        Attention's two products cost 2 * 2 * head_dim * heads * seq/2 forward (causal half) and twice that backward
        (PaLM, arXiv 2204.02311, appendix B, halved for the causal mask). Recomputation is not counted.
        """
        attention = 6 * self.num_layers * self.num_attention_heads * self.head_dim * seq_length
        return 6.0 * self.num_matmul_parameters() + attention

    def problems(self) -> list[str]:
        """What cannot be built, each with the field and the fix."""
        found = []
        for name in ("num_layers", "hidden_size", "ffn_hidden_size", "num_attention_heads", "num_query_groups",
                     "vocab_size", "max_position_embeddings"):  # fmt: skip
            if getattr(self, name) < 1:
                found.append(f"model.{name}: {getattr(self, name)} is not positive; give a positive number")
        if found:
            return found
        if self.kv_channels is None and self.hidden_size % self.num_attention_heads:
            found.append(
                f"model.hidden_size: {self.hidden_size} is not divisible by model.num_attention_heads "
                f"{self.num_attention_heads}; change one, or give model.kv_channels"
            )
        if self.num_attention_heads % self.num_query_groups:
            found.append(
                f"model.num_attention_heads: {self.num_attention_heads} is not divisible by model.num_query_groups "
                f"{self.num_query_groups}; change one"
            )
        if self.head_dim % 2:
            found.append(f"model.kv_channels: {self.head_dim} is odd, RoPE turns pairs; make it even")
        return found


PRESETS: dict[str, LlamaArchitecture] = {
    "llama3_8b": LlamaArchitecture(32, 4096, 14336, 32, 8, 128256),
    "llama3_70b": LlamaArchitecture(80, 8192, 28672, 64, 8, 128256),
    "tinyllama_1_1b": LlamaArchitecture(22, 2048, 5632, 32, 4, 32000, max_position_embeddings=2048, rotary_base=1e4),
    "llama3_tiny": LlamaArchitecture(4, 128, 352, 8, 4, 4096, max_position_embeddings=2048),
}


@dataclass(frozen=True)
class ModelConfig:
    """Which Llama to train: a preset, the HF model named by checkpoint.init_from_hf, or sizes given one by one."""

    preset: Literal["llama3_8b", "llama3_70b", "tinyllama_1_1b", "llama3_tiny"] | None = None
    """Sizes of a known model; each field below overrides one of them."""
    num_layers: int | None = None
    """Number of transformer layers."""
    hidden_size: int | None = None
    """Width of the residual stream."""
    ffn_hidden_size: int | None = None
    """Width of the MLP's gate and of its up projection."""
    num_attention_heads: int | None = None
    """Number of query heads."""
    num_query_groups: int | None = None
    """Number of key/value heads."""
    kv_channels: int | None = None
    """Channels of one head; hidden_size / num_attention_heads when absent."""
    vocab_size: int | None = None
    """Number of token ids of the tokenizer."""
    max_position_embeddings: int | None = None
    """Longest context, in tokens."""
    rotary_base: float | None = None
    """Base of RoPE's frequencies (500000 for Llama-3)."""
    rope_scaling: RopeScaling | None = None
    """Llama-3.1's RoPE scaling, or none."""
    layernorm_epsilon: float | None = None
    """RMSNorm ε."""
    tie_word_embeddings: bool | None = None
    """Use the embedding's weight as output layer."""
    make_vocab_size_divisible_by: int = 128
    """The vocabulary is padded to a multiple of this times tensor_model_parallel_size; padding never trains."""
    init_method_std: float = 0.02
    """Standard deviation of the initial weights, for training from scratch."""
    transformer_impl: Literal["local", "fused", "transformer_engine"] = "fused"
    """Layers in plain torch, with our fused kernels, or NVIDIA's Transformer Engine."""
    recompute: Literal["none", "full", "selective"] = "none"
    """Activations computed again in the backward pass: none, whole layers, or the attention core only."""
    recompute_activation_func: bool = True
    """Fused layers compute SwiGLU again in the backward pass, as Megatron's recompute module moe_act does for experts:
    one cheap pass, and a third of the MLP's activations less. Whole-layer recomputation has no use for it."""

    def architecture(self, base: LlamaArchitecture | None = None) -> LlamaArchitecture:
        """The sizes: those of `base` (an HF model's) or of the preset, with this config's own fields on top.

        Raises:
            ValueError: a size is given neither here nor by a base.
        """
        base = base or (PRESETS[self.preset] if self.preset else None)
        names = [field.name for field in dataclasses.fields(LlamaArchitecture)]
        own = {name: getattr(self, name) for name in names if getattr(self, name) is not None}
        if base is not None:
            return dataclasses.replace(base, **own)
        fields = dataclasses.fields(LlamaArchitecture)
        missing = [f.name for f in fields if f.default is dataclasses.MISSING and f.name not in own]
        if missing:
            raise ValueError(
                f"model: {', '.join(missing)} not given; set model.preset to one of {', '.join(PRESETS)}, "
                "or checkpoint.init_from_hf, or each size"
            )
        return LlamaArchitecture(**own)

    def problems(self) -> list[str]:
        """Contradictions of the fields that no architecture can repair."""
        found = []
        if self.make_vocab_size_divisible_by < 1:
            found.append("model.make_vocab_size_divisible_by: not positive; use 128, or 1 for no padding")
        if self.init_method_std <= 0:
            found.append("model.init_method_std: not positive; use 0.02")
        return found
