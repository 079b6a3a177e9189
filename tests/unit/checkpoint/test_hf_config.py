from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

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
        ({"num_attention_heads": 0}, "num_attention_heads is 0; give a whole number"),
        ({"hidden_size": -2048}, "hidden_size is -2048"),
        ({"num_key_value_heads": 0}, "num_key_value_heads is 0"),
        ({"num_hidden_layers": 10**30}, "num_hidden_layers is 1000"),
        ({"vocab_size": True}, "vocab_size is True"),
        ({"intermediate_size": 5632.0}, r"intermediate_size is 5632\.0"),
        ({"num_attention_heads": "32"}, "num_attention_heads is '32'"),
        ({"num_attention_heads": 48}, "hidden_size: 2048 is not divisible by num_attention_heads 48"),
        ({"num_key_value_heads": 5}, "num_attention_heads: 32 is not divisible by num_key_value_heads 5"),
        ({"head_dim": 63}, "head_dim: 63 is odd"),
        ({"max_position_embeddings": [2048]}, r"max_position_embeddings is \[2048\]"),
        ({"rms_norm_eps": float("nan")}, "rms_norm_eps is nan"),
        ({"rms_norm_eps": "1e-5"}, "rms_norm_eps is '1e-5'"),
        ({"rope_theta": -1}, "rope_theta is -1"),
        ({"rope_theta": 10**400}, "rope_theta is 1000"),
        ({"tie_word_embeddings": "no"}, "tie_word_embeddings is 'no'"),
        ({"rope_scaling": "llama3"}, "rope_scaling is 'llama3'; give an object"),
        ({"rope_parameters": [1]}, r"rope_parameters is \[1\]"),
        ({"rope_scaling": {"rope_type": ["llama3"]}}, r"rope_type \['llama3'\] is not supported"),
        ({"rope_scaling": {**LLAMA31_8B["rope_scaling"], "factor": "8"}}, "factor is '8'"),
        ({"rope_scaling": {**LLAMA31_8B["rope_scaling"], "low_freq_factor": 4}}, "are both 4"),
        ({"rope_scaling": {**LLAMA31_8B["rope_scaling"], "original_max_position_embeddings": 0.5}}, "is 0.5"),
        ({"partial_rotary_factor": 0.5}, "partial_rotary_factor is 0.5"),
        ({"model_type": {"deep": [[[["x"] * 1000] * 10]]}}, "model_type is {.{1,300}; only 'llama'"),
    ],
)
def test_what_is_not_our_llama_is_refused(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=r"config\.json: .*" + message):
        _read(tmp_path, {**TINYLLAMA, **change})


@pytest.mark.parametrize("content", [
    b"", b"[]", b"7", b"null", b"{", b'{"model_type": "ll\xff"}', b"[" * 100_000,
    b'{"vocab_size": ' + b"9" * 5000 + b"}", b'{"a":' * 50_000,
])  # fmt: skip
def test_what_is_no_json_object_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "config.json").write_bytes(content)
    with pytest.raises(ValueError, match=r"config\.json: (cannot be read as JSON|holds no JSON object)"):
        architecture_from_hf(tmp_path)


JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5) | st.sampled_from([1, 8, 64, 2048]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)
ROPE_FIELDS = [*LLAMA31_8B["rope_scaling"], "rope_theta", "type"]
# A rope field is changed inside its object, any other one at the top.
CHANGES = st.dictionaries(st.sampled_from([*LLAMA31_8B, "head_dim", "rope_parameters"]), JSON_VALUES, max_size=2)
ROPE_CHANGES = st.dictionaries(st.sampled_from(ROPE_FIELDS), JSON_VALUES, max_size=2)


@settings(max_examples=400, deadline=None)
@given(change=CHANGES, rope_change=ROPE_CHANGES, dropped=st.sets(st.sampled_from(list(LLAMA31_8B)), max_size=1))
def test_a_changed_config_is_read_as_it_stands_or_refused(
    tmp_path_factory: pytest.TempPathFactory, change: dict[str, Any], rope_change: dict[str, Any], dropped: set[str]
) -> None:
    folder = tmp_path_factory.mktemp("config")
    config = {**LLAMA31_8B, "rope_scaling": {**LLAMA31_8B["rope_scaling"], **rope_change}, **change}
    config = {name: value for name, value in config.items() if name not in dropped}
    try:
        architecture = _read(folder, config)
    except ValueError as error:
        assert str(error).startswith(str(folder / "config.json"))
        return
    assert architecture.problems() == []
    written = hf_config(architecture, "bfloat16", {})
    for name in ("num_hidden_layers", "hidden_size", "intermediate_size", "num_attention_heads", "vocab_size",
                 "num_key_value_heads", "head_dim", "max_position_embeddings", "rms_norm_eps"):  # fmt: skip
        if config.get(name) is not None:
            assert written[name] == config[name], name
    assert _read(folder, written) == architecture


def test_a_directory_without_config(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"config\.json: missing"):
        architecture_from_hf(tmp_path)
