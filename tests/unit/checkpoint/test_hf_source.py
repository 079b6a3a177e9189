"""A damaged or foreign Hugging Face directory: one ValueError that names the file, never a traceback."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from megatron_synE.checkpoint.hf.config import hf_config
from megatron_synE.checkpoint.hf.importing import whole_parameters
from megatron_synE.checkpoint.hf.mapping import hf_shapes, parameters
from megatron_synE.checkpoint.hf.source import INDEX_FILE, SINGLE_FILE, HuggingFaceTensors
from megatron_synE.config.model import LlamaArchitecture

SMALL = LlamaArchitecture(1, 8, 12, 2, 1, 11, 64)
NAMES = [name for parameter in parameters(SMALL) for name in parameter.hf_names]


def _write_model(folder: Path) -> dict[str, str]:
    """Two shards and their index; returns the weight map."""
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps(hf_config(SMALL, "float32", {})))
    tensors = {}
    for parameter in parameters(SMALL):
        for name, shape in zip(parameter.hf_names, hf_shapes(parameter, SMALL), strict=True):
            tensors[name] = torch.randn(shape)
    file_of = {name: f"model-0000{1 + number % 2}-of-00002.safetensors" for number, name in enumerate(NAMES)}
    for file in set(file_of.values()):
        save_file({name: tensors[name] for name in NAMES if file_of[name] == file}, folder / file)
    _write_index(folder, file_of)
    return file_of


def _write_index(folder: Path, file_of: Any) -> None:
    (folder / INDEX_FILE).write_text(json.dumps({"metadata": {}, "weight_map": file_of}))


def _read_all(folder: Path) -> int:
    return len(list(whole_parameters(folder, SMALL)))


@pytest.mark.parametrize("weight_map", [
    None, [], {}, "x", 7, dict.fromkeys(NAMES, 5), dict.fromkeys(NAMES, None), {NAMES[0]: ["a"]},
    dict.fromkeys(NAMES, "../model-00001-of-00002.safetensors"), dict.fromkeys(NAMES, "weights.bin"),
    dict.fromkeys(NAMES, ""), dict.fromkeys(NAMES, "a\0.safetensors"),
    dict.fromkeys(NAMES, "folder.safetensors"),
])  # fmt: skip
def test_a_wrong_index(tmp_path: Path, weight_map: Any) -> None:
    _write_model(tmp_path)
    (tmp_path / "folder.safetensors").mkdir()
    _write_index(tmp_path, weight_map)
    with pytest.raises(ValueError, match=r"(weight_map|not a whole safetensors file).*download (the model|it) again"):
        _read_all(tmp_path)


def test_an_index_that_is_not_json(tmp_path: Path) -> None:
    _write_model(tmp_path)
    (tmp_path / INDEX_FILE).write_bytes(b'{"weight_map": {"\xff')
    with pytest.raises(ValueError, match=r"model\.safetensors\.index\.json: cannot be read as JSON"):
        _read_all(tmp_path)


def test_tensors_of_another_shape_or_format(tmp_path: Path) -> None:
    file_of = _write_model(tmp_path)
    file = tmp_path / file_of["model.norm.weight"]
    for wrong, message in ((torch.ones(9), "config.json says"), (torch.tensor(1.0), "config.json says"),
                           (torch.ones(8, dtype=torch.int8), "model.norm.weight is I8")):  # fmt: skip
        save_file({"model.norm.weight": wrong}, file)
        _write_index(tmp_path, {**file_of, **dict.fromkeys(NAMES, "rest.safetensors"), "model.norm.weight": file.name})
        with pytest.raises(ValueError, match=rf"{file.name}: .*{message}"):
            HuggingFaceTensors(tmp_path).dtype("model.norm.weight")
            _read_only(tmp_path, "decoder.final_layernorm.weight")


def _read_only(folder: Path, name: str) -> None:
    from megatron_synE.checkpoint.hf.importing import read_shard

    parameter = next(parameter for parameter in parameters(SMALL) if parameter.name == name)
    read_shard(HuggingFaceTensors(folder), parameter, SMALL)


@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_a_damaged_header_or_length_is_refused_or_harmless(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    folder = tmp_path_factory.mktemp("damaged")
    file = folder / _write_model(folder)["lm_head.weight"]
    content = bytearray(file.read_bytes())
    header_bytes = 8 + struct.unpack("<Q", content[:8])[0]
    if data.draw(st.booleans()):
        del content[data.draw(st.integers(0, len(content) - 1)) :]
    else:
        content[data.draw(st.integers(0, header_bytes - 1))] ^= 1 << data.draw(st.integers(0, 7))
    file.write_bytes(content)
    try:
        assert _read_all(folder) == len(list(parameters(SMALL)))
    except ValueError as error:
        assert str(folder) in str(error)


def test_a_single_file(tmp_path: Path) -> None:
    save_file({"model.norm.weight": torch.arange(8.0)}, tmp_path / SINGLE_FILE)
    tensors = HuggingFaceTensors(tmp_path)
    assert tensors.files() == [tmp_path / SINGLE_FILE]
    assert torch.equal(tensors.read("model.norm.weight", 0, 2, 4), torch.tensor([2.0, 3.0]))
    (tmp_path / SINGLE_FILE).write_bytes(b"")
    with pytest.raises(ValueError, match=r"model\.safetensors: not a whole safetensors file"):
        HuggingFaceTensors(tmp_path)
