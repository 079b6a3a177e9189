"""config.json of a Hugging Face Llama ⇄ our architecture."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from megatron_synE.checkpoint.layout import read_json
from megatron_synE.config.model import LlamaArchitecture, RopeScaling

CONFIG_FILE = "config.json"

_TORCH_DTYPES = {"bfloat16", "float16", "float32"}
# Fields whose other values mean another computation than ours.
_REQUIRED = {"hidden_act": "silu", "attention_bias": False, "mlp_bias": False}


def architecture_from_hf(hf_dir: str | Path) -> LlamaArchitecture:
    """Sizes of the Llama in `hf_dir`; config.json as transformers 4 (`rope_scaling`) or 5 (`rope_parameters`) has it.

    Raises:
        ValueError: no config.json, or one of a model that is not a Llama as we compute it; names the field.
    """
    path = Path(hf_dir) / CONFIG_FILE
    if not path.is_file():
        raise ValueError(f"{path}: missing; give the directory of a Hugging Face Llama")
    config = read_json(path)
    problems = _problems(config)
    if problems:
        raise ValueError(f"{path}: " + "; ".join(problems) + "; only Llama can be converted")
    rope = {"rope_theta": 10000.0, **_rope_fields(config)}
    num_heads = config["num_attention_heads"]
    head_dim = config.get("head_dim")
    return LlamaArchitecture(
        num_layers=config["num_hidden_layers"],
        hidden_size=config["hidden_size"],
        ffn_hidden_size=config["intermediate_size"],
        num_attention_heads=num_heads,
        num_query_groups=config.get("num_key_value_heads") or num_heads,
        vocab_size=config["vocab_size"],
        max_position_embeddings=config.get("max_position_embeddings", 2048),
        kv_channels=None if head_dim in (None, config["hidden_size"] // num_heads) else head_dim,
        rotary_base=float(rope["rope_theta"]),
        rope_scaling=_scaling(path, rope),
        layernorm_epsilon=config.get("rms_norm_eps", 1e-6),
        tie_word_embeddings=config.get("tie_word_embeddings", False),
    )


def hf_config(architecture: LlamaArchitecture, dtype: str, token_ids: dict[str, Any]) -> dict[str, Any]:
    """config.json that transformers 4 and 5 both read.

    Args:
        dtype: of the weights: `bfloat16`, `float16` or `float32`.
        token_ids: `bos_token_id`, `eos_token_id`, `pad_token_id`, as far as known.
    """
    assert dtype in _TORCH_DTYPES, dtype
    scaling = architecture.rope_scaling
    rope: dict[str, Any] = {"rope_type": "default"}
    if scaling is not None:
        rope = {
            "rope_type": "llama3",
            "factor": scaling.factor,
            "low_freq_factor": scaling.low_freq_factor,
            "high_freq_factor": scaling.high_freq_factor,
            "original_max_position_embeddings": scaling.original_max_position_embeddings,
        }
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "attention_bias": False,
        "attention_dropout": 0.0,
        **token_ids,
        "dtype": dtype,
        "torch_dtype": dtype,
        "head_dim": architecture.head_dim,
        "hidden_act": "silu",
        "hidden_size": architecture.hidden_size,
        "initializer_range": 0.02,
        "intermediate_size": architecture.ffn_hidden_size,
        "max_position_embeddings": architecture.max_position_embeddings,
        "mlp_bias": False,
        "num_attention_heads": architecture.num_attention_heads,
        "num_hidden_layers": architecture.num_layers,
        "num_key_value_heads": architecture.num_query_groups,
        "pretraining_tp": 1,
        "rms_norm_eps": architecture.layernorm_epsilon,
        "rope_parameters": {**rope, "rope_theta": architecture.rotary_base},
        "rope_scaling": None if scaling is None else rope,
        "rope_theta": architecture.rotary_base,
        "tie_word_embeddings": architecture.tie_word_embeddings,
        "use_cache": True,
        "vocab_size": architecture.vocab_size,
    }


def _problems(config: dict[str, Any]) -> list[str]:
    found = []
    if config.get("model_type") != "llama":
        found.append(f"model_type is {config.get('model_type')!r}, not 'llama'")
    for name in ("num_hidden_layers", "hidden_size", "intermediate_size", "num_attention_heads", "vocab_size"):
        if not isinstance(config.get(name), int):
            found.append(f"{name} is {config.get(name)!r}, not a number")
    for name, value in _REQUIRED.items():
        if config.get(name, value) != value:
            found.append(f"{name} is {config[name]!r}, only {value!r} is supported")
    return found


def _rope_fields(config: dict[str, Any]) -> dict[str, Any]:
    """Both generations of config.json in one flat dict; absent fields are absent."""
    old = {"rope_theta": config["rope_theta"]} if config.get("rope_theta") is not None else {}
    return {**old, **(config.get("rope_scaling") or {}), **(config.get("rope_parameters") or {})}


def _scaling(path: Path, rope: dict[str, Any]) -> RopeScaling | None:
    kind = rope.get("rope_type", rope.get("type", "default"))
    if kind == "default":
        return None
    if kind != "llama3":
        raise ValueError(f"{path}: rope_type {kind!r} is not supported; only 'default' and 'llama3' are")
    try:
        return RopeScaling(
            factor=float(rope["factor"]),
            low_freq_factor=float(rope["low_freq_factor"]),
            high_freq_factor=float(rope["high_freq_factor"]),
            original_max_position_embeddings=int(rope["original_max_position_embeddings"]),
        )
    except KeyError as error:
        raise ValueError(f"{path}: rope_type 'llama3' without {error}; add it") from None
