from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from megatron_synE.checkpoint.hf.config import architecture_from_hf, hf_config
from megatron_synE.config.model import PRESETS, LlamaArchitecture, RopeScaling

LLAMA31 = RopeScaling(8.0, 1.0, 4.0, 8192)
# As meta-llama/Llama-3.1-8B and TinyLlama publish them (transformers 4).
LLAMA31_8B: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"], "attention_bias": False, "bos_token_id": 128000, "eos_token_id": 128001,
    "hidden_act": "silu", "hidden_size": 4096, "intermediate_size": 14336, "max_position_embeddings": 131072,
    "mlp_bias": False, "model_type": "llama", "num_attention_heads": 32, "num_hidden_layers": 32,
    "num_key_value_heads": 8, "rms_norm_eps": 1e-05, "rope_theta": 500000.0, "tie_word_embeddings": False,
    "rope_scaling": {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
                     "original_max_position_embeddings": 8192, "rope_type": "llama3"},
    "torch_dtype": "bfloat16", "vocab_size": 128256,
}  # fmt: skip
TINYLLAMA: dict[str, Any] = {
    "hidden_act": "silu", "hidden_size": 2048, "intermediate_size": 5632, "max_position_embeddings": 2048,
    "model_type": "llama", "num_attention_heads": 32, "num_hidden_layers": 22, "num_key_value_heads": 4,
    "rms_norm_eps": 1e-05, "rope_scaling": None, "tie_word_embeddings": False, "vocab_size": 32000,
}  # fmt: skip


def _read(folder: Path, config: dict[str, Any]) -> LlamaArchitecture:
    (folder / "config.json").write_text(json.dumps(config))
    return architecture_from_hf(folder)


def test_published_configs(tmp_path: Path) -> None:
    assert _read(tmp_path, TINYLLAMA) == PRESETS["tinyllama_1_1b"]
    expected = LlamaArchitecture(32, 4096, 14336, 32, 8, 128256, 131072, rope_scaling=LLAMA31)
    assert _read(tmp_path, LLAMA31_8B) == expected
    new = {key: value for key, value in LLAMA31_8B.items() if key not in ("rope_theta", "rope_scaling")}
    new["rope_parameters"] = {**LLAMA31_8B["rope_scaling"], "rope_theta": 500000.0}
    assert _read(tmp_path, new) == expected


@pytest.mark.parametrize("architecture", [
    *PRESETS.values(),
    LlamaArchitecture(2, 64, 96, 4, 2, 77, 512, kv_channels=32, rope_scaling=LLAMA31, tie_word_embeddings=True),
])  # fmt: skip
def test_what_is_written_reads_back(tmp_path: Path, architecture: LlamaArchitecture) -> None:
    assert _read(tmp_path, hf_config(architecture, "bfloat16", {"eos_token_id": 2})) == architecture


def test_transformers_reads_what_is_written(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    architecture = LlamaArchitecture(2, 64, 96, 4, 2, 77, 512, rotary_base=1234.0, rope_scaling=LLAMA31)
    (tmp_path / "config.json").write_text(json.dumps(hf_config(architecture, "float32", {"eos_token_id": 2})))
    config = transformers.AutoConfig.from_pretrained(tmp_path)
    assert config.rope_parameters["rope_theta"] == 1234.0
    assert config.rope_parameters["rope_type"] == "llama3"
    assert config.rope_parameters["factor"] == 8.0
    assert config.eos_token_id == 2


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model_type": "qwen2"}, "model_type is 'qwen2'"),
        ({"hidden_act": "gelu"}, "hidden_act is 'gelu'"),
        ({"attention_bias": True}, "attention_bias is True"),
        ({"num_hidden_layers": None}, "num_hidden_layers is None"),
        ({"rope_scaling": {"type": "linear", "factor": 2.0}}, "rope_type 'linear' is not supported"),
        ({"rope_scaling": {"rope_type": "llama3", "factor": 8.0}}, "without 'low_freq_factor'"),
    ],
)
def test_what_is_not_our_llama_is_refused(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        _read(tmp_path, {**TINYLLAMA, **change})


def test_a_directory_without_config(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"config\.json: missing"):
        architecture_from_hf(tmp_path)
