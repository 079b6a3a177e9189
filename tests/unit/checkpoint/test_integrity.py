"""No byte that is read from a checkpoint may have changed unnoticed."""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from megatron_synE.checkpoint.contents import quick_check
from megatron_synE.checkpoint.files import DamagedCheckpoint, FileList, write_file_list
from megatron_synE.checkpoint.whole_tensors import WholeTensors
from tests.helpers.checkpoint_files import flip_bit, rewrite_json, state_of, write_checkpoint

TENSORS = {
    "embedding": torch.randn(40, 16, generator=torch.Generator().manual_seed(1)),
    "norm": torch.ones(16, dtype=torch.bfloat16),
    "rng_state": torch.arange(64, dtype=torch.uint8).reshape(2, 32),
}
READ_FILES = ("state.json", "index.json", "files.json", "metadata.json", "__0_0.distcp")


def _read_all(path: Path) -> dict[str, torch.Tensor]:
    tensors = WholeTensors(path)
    return {key: tensors.read(key) for key in tensors}


def test_what_is_written_is_read(tmp_path: Path) -> None:
    path = write_checkpoint(tmp_path, 3, TENSORS)
    assert quick_check(tmp_path).state["step"] == 3
    read = _read_all(path)
    assert all(torch.equal(read[key], TENSORS[key]) for key in TENSORS)


def test_300_flipped_bits_are_300_errors_that_name_the_file(tmp_path: Path) -> None:
    path = write_checkpoint(tmp_path, 3, TENSORS)
    choose = random.Random(0)
    for number in range(300):
        victim = path / READ_FILES[number % len(READ_FILES)]
        bit = choose.randrange(8 * victim.stat().st_size)
        flip_bit(victim, bit)
        with pytest.raises(DamagedCheckpoint) as error:
            _read_all(path)
        assert str(victim) in str(error.value), (number, bit)
        assert "weights_only" not in str(error.value)
        flip_bit(victim, bit)
    _read_all(path)  # as it was


def _zero_a_block(victim: Path, older: Path) -> None:
    content = bytearray(victim.read_bytes())
    middle = len(content) // 2
    content[middle : middle + 64] = bytes(64)
    victim.write_bytes(content)


def _put_an_older_copy_there(victim: Path, older: Path) -> None:
    shutil.copyfile(older / victim.name, victim)


def _cut(victim: Path, older: Path) -> None:
    victim.write_bytes(victim.read_bytes()[:-1])


def _remove(victim: Path, older: Path) -> None:
    victim.unlink()


@pytest.mark.parametrize("damage", [_zero_a_block, _put_an_older_copy_there, _cut, _remove])
@pytest.mark.parametrize("name", ["state.json", "index.json", "files.json", "__0_0.distcp"])
def test_other_damage(tmp_path: Path, name: str, damage: Callable[[Path, Path], None]) -> None:
    generator = torch.Generator().manual_seed(2)
    older = write_checkpoint(tmp_path, 1, {**TENSORS, "embedding": torch.randn(40, 16, generator=generator)})
    path = write_checkpoint(tmp_path, 2, TENSORS)
    damage(path / name, older)
    with pytest.raises(DamagedCheckpoint) as error:
        _read_all(path)
    # An older list is sound in itself: then it is the other files that do not fit it.
    assert ("step_00000002/" if name == "files.json" else f"step_00000002/{name}") in str(error.value)
    _read_all(older)


def test_a_checkpoint_of_format_1_has_no_checksums_and_still_loads(tmp_path: Path) -> None:
    path = write_checkpoint(tmp_path, 3, TENSORS)
    index = json.loads((path / "index.json").read_text())
    for entry in index["tensors"].values():
        for chunk in entry["chunks"]:
            del chunk["checksum"]
    (path / "index.json").write_text(json.dumps(index))
    (path / "state.json").write_text(json.dumps({**state_of(3), "format_version": 1}))
    sizes = {entry.name: entry.stat().st_size for entry in path.iterdir() if entry.name != "files.json"}
    (path / "files.json").write_text(json.dumps({"files": sizes}))
    assert not FileList(path).has_checksums
    assert torch.equal(_read_all(path)["embedding"], TENSORS["embedding"])


def test_a_record_of_something_else_is_no_tensor(tmp_path: Path) -> None:
    path = write_checkpoint(tmp_path, 3, TENSORS)
    index = json.loads((path / "index.json").read_text())
    first, second = index["tensors"]["embedding"]["chunks"]
    for key in ("start_bytes", "length_bytes", "checksum"):
        first[key] = index["tensors"]["norm"]["chunks"][0][key]
    first["length_bytes"] += 2000  # enough for its shape, so that only the record tells
    first["checksum"] = second["checksum"]
    rewrite_json(path / "index.json", index)
    with pytest.raises(DamagedCheckpoint, match="embedding"):
        _read_all(path)


def test_the_list_needs_no_second_reading_of_what_was_hashed_while_writing(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("x")
    write_file_list(tmp_path, {"a": "0" * 32})
    assert FileList(tmp_path)["a"].checksum == "0" * 32
