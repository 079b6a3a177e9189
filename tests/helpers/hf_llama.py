"""Random small Llamas in Hugging Face format."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

SHAPES: dict[str, dict[str, Any]] = {
    "gqa": {"hidden_size": 64, "num_attention_heads": 8, "num_key_value_heads": 2, "intermediate_size": 112,
            "vocab_size": 131, "num_hidden_layers": 4, "rope_theta": 500000.0},
    "wide_heads": {"hidden_size": 48, "num_attention_heads": 4, "num_key_value_heads": 4, "head_dim": 32,
                   "intermediate_size": 80, "vocab_size": 96, "num_hidden_layers": 2, "rope_theta": 10000.0},
    "llama31_rope": {"hidden_size": 64, "num_attention_heads": 4, "num_key_value_heads": 2, "intermediate_size": 96,
                     "vocab_size": 200, "num_hidden_layers": 2, "rope_theta": 500000.0,
                     "scaling": {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0,
                                 "high_freq_factor": 4.0, "original_max_position_embeddings": 64}},
}  # fmt: skip


def make_hf_llama(directory: Path, shape: str, dtype: torch.dtype = torch.float32, *, tied: bool = False,
                  max_shard_size: str = "5GB", vocab_size: int | None = None, context_tokens: int = 512,
                  token_ids: tuple[int, int] = (1, 2)) -> Any:  # fmt: skip
    """Save a random LlamaForCausalLM with large enough weights that every part of it counts; returns the model.

    Args:
        vocab_size: other than the shape's.
        token_ids: begin and end of text.
    """
    from transformers import LlamaConfig, LlamaForCausalLM

    sizes = dict(SHAPES[shape])
    sizes["vocab_size"] = vocab_size or sizes["vocab_size"]
    rope = {"rope_theta": sizes.pop("rope_theta"), **sizes.pop("scaling", {"rope_type": "default"})}
    torch.manual_seed(0)
    config = LlamaConfig(
        **sizes, rope_parameters=rope, max_position_embeddings=context_tokens, rms_norm_eps=1e-5,
        tie_word_embeddings=tied, attn_implementation="eager", bos_token_id=token_ids[0], eos_token_id=token_ids[1],
    )  # fmt: skip
    model = LlamaForCausalLM(config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(torch.rand_like(parameter) + 0.5 if "norm" in name else 0.2 * torch.randn_like(parameter))
    model = model.to(dtype).eval()
    model.save_pretrained(directory, max_shard_size=max_shard_size)
    (directory / "tokenizer.json").write_text('{"version": "1.0"}', encoding="utf-8")
    return model
