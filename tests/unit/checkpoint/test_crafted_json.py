"""Checkpoints whose JSON fits its checksums and still cannot be: one error that names the file, never other values."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from megatron_synE.checkpoint.contents import quick_check
from megatron_synE.checkpoint.files import DamagedCheckpoint
from megatron_synE.checkpoint.layout import read_architecture, read_state
from megatron_synE.checkpoint.whole_tensors import WholeTensors
from tests.helpers.checkpoint_files import rewrite_json, write_checkpoint

TENSORS = {
    "embedding": torch.arange(30, dtype=torch.float32).reshape(6, 5),
    "norm": torch.ones(5, dtype=torch.bfloat16),
}
VALUES = st.one_of(
    st.none(), st.booleans(), st.integers(-3, 7), st.sampled_from([-(2**70), 2**40, 2**70, 10**5000, 0.5, 1e308]),
    st.text(max_size=4), st.just([]), st.just({}), st.lists(st.integers(0, 6), max_size=3),
    st.sampled_from(["float16", "int32", "../x", "__0_0.distcp", "0" * 32]),
)  # fmt: skip


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("crafted"), 3, TENSORS)


def _places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    keys = list(value) if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else []
    return [place for key in keys for place in ((*path, key), *_places(value[key], (*path, key)))]


def _to_text(content: Any) -> str:
    """JSON with the numbers of 5,000 digits that json.dumps refuses."""
    return json.dumps(_with_marks(content)).replace('"<huge>"', "1" + "0" * 5000)


def _with_marks(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _with_marks(entry) for key, entry in value.items()}
    if isinstance(value, list):
        return [_with_marks(entry) for entry in value]
    return "<huge>" if type(value) is int and value == 10**5000 else value


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(name=st.sampled_from(["state.json", "index.json", "metadata.json"]), data=st.data())
def test_a_changed_value_is_one_error_or_changes_nothing(sound: Path, name: str, data: st.DataObject) -> None:
    original = (sound / name).read_text()
    content = json.loads(original)
    place = data.draw(st.sampled_from(_places(content)), label="place")
    changed = copy.deepcopy(content)
    parent = changed
    for key in place[:-1]:
        parent = parent[key]
    if data.draw(st.booleans(), label="delete"):
        del parent[place[-1]]
    else:
        parent[place[-1]] = data.draw(VALUES, label="value")
    rewrite_json(sound / name, _to_text(changed))
    try:
        quick_check(sound)
        tensors = WholeTensors(sound)
        for key in tensors:
            assert torch.equal(tensors.read(key), TENSORS[key])
    except ValueError as error:
        assert str(sound) in str(error) and len(str(error)) < 500
        assert "weights_only" not in str(error) and "\n" not in str(error)
        assert isinstance(error, DamagedCheckpoint) or "format_version" in str(error)
    finally:
        rewrite_json(sound / name, original)


def _index(sound: Path) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    content = json.loads((sound / "index.json").read_text())
    return content, content["tensors"]["embedding"]["chunks"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda chunks: chunks.clear(), "embedding': chunks is empty"),
        (lambda chunks: chunks.pop(), "do not cover it exactly"),
        (lambda chunks: chunks[1].update(offsets=[0, 0]), "two of its chunks overlap"),
        (lambda chunks: chunks[1].update(offsets=[4, 0]), r"chunk 1 reaches beyond the shape \[6, 5\]"),
        (lambda chunks: chunks[1].update(offsets=[3]), "chunk 1 has not 2 dimensions"),
        (lambda chunks: chunks[0].update(length_bytes=2**40), "chunk 0: lies beyond the end of __0_0.distcp"),
        (lambda chunks: chunks[0].update(shape=[3, 2**50]), "chunk 0: shape .* is more than length_bytes"),
        (lambda chunks: chunks[0].update(file="../state.json"), "file '../state.json' is not one of the checkpoint's"),
        (lambda chunks: chunks[0].update(start_bytes=-1), "start_bytes is -1, not a count"),
        (lambda chunks: chunks[0].pop("checksum"), "chunk 0: checksum is missing"),
    ],
)  # fmt: skip
def test_chunks_that_cannot_be(sound: Path, change: Any, message: str) -> None:
    original = (sound / "index.json").read_text()
    content, chunks = _index(sound)
    change(chunks)
    rewrite_json(sound / "index.json", content)
    try:
        with pytest.raises(DamagedCheckpoint, match=message) as error:
            WholeTensors(sound)
        assert str(error.value).startswith(f"{sound}/index.json: ")
    finally:
        rewrite_json(sound / "index.json", original)


@pytest.mark.parametrize(
    ("text", "message"),
    [("[" * 100_000, "nested too deeply"), ("{", "broken"), ("[]", "not a JSON object"), ("\ud800", "broken"),
     ('{"format_version": 99}', "format_version is 99"), ('{"format_version": 2}', "step is missing")],
)  # fmt: skip
def test_a_state_that_is_none(sound: Path, text: str, message: str) -> None:
    original = (sound / "state.json").read_text()
    try:
        (sound / "state.json").write_bytes(text.encode("utf-8", errors="surrogatepass"))
        rewrite_json(sound / "metadata.json", (sound / "metadata.json").read_text())
        for read in (read_state, read_architecture, quick_check):
            with pytest.raises(ValueError, match=message) as error:
                read(sound)
            assert str(sound / "state.json") in str(error.value)
    finally:
        rewrite_json(sound / "state.json", original)


@pytest.mark.parametrize(
    "change",
    [{"num_layers": 0}, {"num_attention_heads": 0}, {"hidden_size": 2**40}, {"vocab_size": "many"}, {"new": 1},
     {"rope_scaling": 3}, {"rope_scaling": {"factor": "x"}}, {"layernorm_epsilon": -1.0}, {"hidden_size": True}],
)  # fmt: skip
def test_a_model_that_cannot_be(sound: Path, change: dict[str, Any]) -> None:
    original = (sound / "state.json").read_text()
    state = json.loads(original)
    state["architecture"].update(change)
    rewrite_json(sound / "state.json", state)
    try:
        with pytest.raises(DamagedCheckpoint, match=f"state.json: architecture: .*{next(iter(change))}"):
            read_architecture(sound)
    finally:
        rewrite_json(sound / "state.json", original)


@pytest.mark.parametrize("text", ['{"files": []}', '{"files": {"a": {}}}', '{"files": {"a": 1.5}}', "[" * 100_000,
                                  '{"files": {"a": {"bytes": -1, "checksum": ""}}}', '{"checksum": 1}'])  # fmt: skip
def test_a_list_of_files_that_is_none(sound: Path, text: str) -> None:
    original = (sound / "files.json").read_text()
    (sound / "files.json").write_text(text)
    try:
        with pytest.raises(DamagedCheckpoint, match=r"files.json: "):
            quick_check(sound)
    finally:
        (sound / "files.json").write_text(original)


@pytest.mark.parametrize("name", ["\ud800", "a\0", "../state.json", ""])
def test_a_list_of_files_with_names_that_cannot_be(sound: Path, name: str) -> None:
    original = (sound / "files.json").read_text()
    (sound / "files.json").write_text(json.dumps({"files": {name: 1}}))
    try:
        with pytest.raises(DamagedCheckpoint, match=r"files.json: files: .* is no file beside it"):
            quick_check(sound)
    finally:
        (sound / "files.json").write_text(original)
