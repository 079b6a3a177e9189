"""config.json of a Hugging Face Llama ⇄ our architecture."""

from __future__ import annotations

import json
import reprlib
from pathlib import Path
from typing import Any

from megatron_synE.config.model import LlamaArchitecture, RopeScaling

CONFIG_FILE = "config.json"

_TORCH_DTYPES = {"bfloat16", "float16", "float32"}
# Fields whose other values mean another computation than ours.
_REQUIRED = {"hidden_act": "silu", "attention_bias": False, "mlp_bias": False, "partial_rotary_factor": 1.0}
# Largest believable value of each size: a damaged file must not ask for memory that no machine has.
_MAX_SIZES = {
    "num_hidden_layers": 10**4, "hidden_size": 10**6, "intermediate_size": 10**7, "num_attention_heads": 10**5,
    "num_key_value_heads": 10**5, "head_dim": 10**5, "vocab_size": 10**8, "max_position_embeddings": 10**9,
}  # fmt: skip
# An absent size, or null, means: as many groups as heads, hidden_size / num_attention_heads, and this.
_OPTIONAL_SIZES = {"num_key_value_heads": None, "head_dim": None, "max_position_embeddings": 2048}
# Names in `LlamaArchitecture.problems()` → names in config.json.
_HF_NAMES = {
    "model.hidden_size": "hidden_size", "model.num_attention_heads": "num_attention_heads",
    "model.num_query_groups": "num_key_value_heads", "model.kv_channels": "head_dim",
}  # fmt: skip


def architecture_from_hf(hf_dir: str | Path) -> LlamaArchitecture:
    """Sizes of the Llama in `hf_dir`; config.json as transformers 4 (`rope_scaling`) or 5 (`rope_parameters`) has it.

    Raises:
        ValueError: no config.json, a broken one, or one of a model that is not a Llama as we compute it; names the
            file, the field and the fix.
    """
    path = Path(hf_dir) / CONFIG_FILE
    if not path.is_file():
        raise ValueError(f"{path}: missing; give the directory of a Hugging Face Llama")
    config = read_hf_json(path)
    problems: list[str] = []
    if config.get("model_type") != "llama":
        problems.append(f"model_type is {reprlib.repr(config.get('model_type'))}; only 'llama' can be converted")
    for name, value in _REQUIRED.items():
        if config.get(name, value) != value:
            problems.append(f"{name} is {reprlib.repr(config[name])}; only models with {value!r} can be converted")
    sizes = {name: _size(config, name, problems) for name in _MAX_SIZES}
    epsilon = _number(config, "rms_norm_eps", 1e-6, 1.0, problems)
    tied = config.get("tie_word_embeddings", False)
    if not isinstance(tied, bool):
        problems.append(f"tie_word_embeddings is {reprlib.repr(tied)}; write true or false")
    rope = _rope_fields(config, problems)
    rotary_base = _number(rope, "rope_theta", 10000.0, 1e15, problems)
    scaling = _scaling(rope, problems)
    if not problems:
        num_heads = sizes["num_attention_heads"]
        default_head_dim = sizes["hidden_size"] // num_heads
        architecture = LlamaArchitecture(
            num_layers=sizes["num_hidden_layers"],
            hidden_size=sizes["hidden_size"],
            ffn_hidden_size=sizes["intermediate_size"],
            num_attention_heads=num_heads,
            num_query_groups=sizes["num_key_value_heads"] or num_heads,
            vocab_size=sizes["vocab_size"],
            max_position_embeddings=sizes["max_position_embeddings"],
            kv_channels=None if sizes["head_dim"] in (None, default_head_dim) else sizes["head_dim"],
            rotary_base=rotary_base,
            rope_scaling=scaling,
            layernorm_epsilon=epsilon,
            tie_word_embeddings=tied,
        )
        problems = [_in_hf_names(problem) for problem in architecture.problems()]
    if problems:
        raise ValueError(f"{path}: " + "; ".join(problems))
    return architecture


def read_hf_json(path: Path) -> dict[str, Any]:
    """A JSON object of a Hugging Face directory.

    Raises:
        ValueError: the file cannot be read, or is not a JSON object; names it.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError, OSError) as error:  # not JSON, not UTF-8, a number of 5,000 digits, too deep
        reason = "nested too deeply" if isinstance(error, RecursionError) else error
        raise ValueError(f"{path}: cannot be read as JSON ({reason}); download it again") from None
    if not isinstance(content, dict):
        raise ValueError(f"{path}: holds no JSON object but {reprlib.repr(content)}; download it again")
    return content


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


def _size(config: dict[str, Any], name: str, problems: list[str]) -> Any:
    """A positive whole number; the default of an optional field that is absent or null."""
    value = config.get(name)
    if value is None and name in _OPTIONAL_SIZES:
        return _OPTIONAL_SIZES[name]
    if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= _MAX_SIZES[name]:
        problems.append(f"{name} is {reprlib.repr(value)}; give a whole number from 1 to {_MAX_SIZES[name]}")
    return value


def _number(fields: dict[str, Any], name: str, default: float, maximum: float, problems: list[str]) -> float:
    """A positive number; `default` where it is absent or null."""
    value = fields.get(name)
    if value is None:
        return default
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value <= maximum:  # NaN is not
        problems.append(f"{name} is {reprlib.repr(value)}; give a positive number up to {maximum:g}")
        return default
    return float(value)


def _rope_fields(config: dict[str, Any], problems: list[str]) -> dict[str, Any]:
    """Both generations of config.json in one flat dict; absent fields are absent."""
    fields = {"rope_theta": config.get("rope_theta")}
    for name in ("rope_scaling", "rope_parameters"):
        given = config.get(name)
        if given is None:
            continue
        if not isinstance(given, dict):
            problems.append(f"{name} is {reprlib.repr(given)}; give an object with rope_type, or null")
            continue
        fields.update(given)
    return fields


def _scaling(rope: dict[str, Any], problems: list[str]) -> RopeScaling | None:
    kind = rope.get("rope_type", rope.get("type", "default"))
    if kind == "default":
        return None
    if kind != "llama3":
        problems.append(f"rope_type {reprlib.repr(kind)} is not supported; only 'default' and 'llama3' are")
        return None
    names = ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings")
    missing = [name for name in names if rope.get(name) is None]
    if missing:
        problems.append(f"rope_type 'llama3' without {', '.join(map(repr, missing))}; add it")
        return None
    factor, low, high = (_number(rope, name, 1.0, 1e6, problems) for name in names[:3])
    original = rope[names[3]]
    if isinstance(original, bool) or not isinstance(original, int) or not 1 <= original <= 10**9:
        problems.append(f"{names[3]} is {reprlib.repr(original)}; give a whole number of tokens")
    if low == high:  # RoPE's ramp between the two is divided by their difference
        problems.append(f"low_freq_factor and high_freq_factor are both {low:g}; give the model's own values")
    return RopeScaling(factor, low, high, original)


def _in_hf_names(problem: str) -> str:
    for own, hf in _HF_NAMES.items():
        problem = problem.replace(own, hf)
    return problem
