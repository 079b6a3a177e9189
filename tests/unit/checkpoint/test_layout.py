from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from megatron_synE.checkpoint import files, layout
from megatron_synE.checkpoint.files import DamagedCheckpoint
from megatron_synE.checkpoint.whole_tensors import WholeTensors
from tests.helpers.checkpoint_files import write_checkpoint


def test_latest_names_the_newest_save(tmp_path: Path) -> None:
    assert layout.find_latest(tmp_path) is None
    write_checkpoint(tmp_path, 10)
    path = write_checkpoint(tmp_path, 20)
    assert layout.find_latest(tmp_path) == path == tmp_path / "step_00000020"
    assert layout.read_state(tmp_path)["step"] == 20
    assert layout.read_state(tmp_path / "step_00000010")["step"] == 10
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["latest", "step_00000010", "step_00000020"]


def test_keep_counts_the_newest_and_never_deletes_latest(tmp_path: Path) -> None:
    for step in (10, 20, 30):
        write_checkpoint(tmp_path, step, keep=2)
    assert [path.name for path in layout.checkpoint_directories(tmp_path)] == ["step_00000020", "step_00000030"]
    write_checkpoint(tmp_path, 5, keep=1)  # a run that was rolled back: the newest is not the highest number
    assert [path.name for path in layout.checkpoint_directories(tmp_path)] == ["step_00000005"]


def test_the_same_step_is_replaced(tmp_path: Path) -> None:
    write_checkpoint(tmp_path, 10)
    path = write_checkpoint(tmp_path, 10, {"weight": torch.zeros(2, 2)})
    assert WholeTensors(path).shape("weight") == (2, 2)
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["latest", "step_00000010"]


def test_a_save_removes_what_a_killed_one_left(tmp_path: Path) -> None:
    (tmp_path / ".step_00000007.tmp").mkdir()
    (tmp_path / ".step_00000007.tmp" / "half").touch()
    write_checkpoint(tmp_path, 8)
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["latest", "step_00000008"]


def test_keep_every_keeps_what_it_divides_besides(tmp_path: Path) -> None:
    for step in (5, 10, 15, 20, 25, 30):
        write_checkpoint(tmp_path, step, keep=2, keep_every_steps=10)
    assert [path.name[-2:] for path in layout.checkpoint_directories(tmp_path)] == ["10", "20", "25", "30"]


def test_what_is_damaged_or_left_behind_does_not_count_as_kept(tmp_path: Path) -> None:
    for step in (10, 20, 30):
        write_checkpoint(tmp_path, step)
    (tmp_path / "latest").write_text("step_00000020\n")  # gone back: 30 belongs to nothing any more
    write_checkpoint(tmp_path, 25, keep=2)
    assert [path.name[-2:] for path in layout.checkpoint_directories(tmp_path)] == ["20", "25"]
    (tmp_path / "step_00000025" / "index.json").unlink()
    write_checkpoint(tmp_path, 27, keep=2)
    assert [path.name[-2:] for path in layout.resume_candidates(tmp_path)] == ["27", "20"]


@pytest.mark.parametrize("latest", [None, "step_00000099\n", "../elsewhere\n", "\x00\xff"])
def test_without_a_usable_latest_the_newest_complete_checkpoint_is_it(tmp_path: Path, latest: str | None) -> None:
    for step in (10, 20, 30):
        write_checkpoint(tmp_path, step)
    (tmp_path / "step_00000030" / "__0_0.distcp").unlink()
    (tmp_path / "latest").unlink()
    if latest is not None:
        (tmp_path / "latest").write_text(latest)
    assert layout.find_latest(tmp_path) == tmp_path / "step_00000020"
    assert [path.name[-2:] for path in layout.resume_candidates(tmp_path)] == ["20", "10"]
    notes = layout.resume_notes(tmp_path)
    assert any("latest" in note and "step_00000020 is the newest" in note for note in notes)
    assert any("passed over" in note and "step_00000030/__0_0.distcp: missing" in note for note in notes)


def test_a_latest_that_points_to_an_older_one_is_honoured_with_a_note(tmp_path: Path) -> None:
    for step in (10, 20, 30):
        write_checkpoint(tmp_path, step)
    assert layout.resume_notes(tmp_path) == []
    (tmp_path / "latest").write_text("step_00000020")
    # What was left behind comes last: it is another run's future.
    assert [path.name[-2:] for path in layout.resume_candidates(tmp_path)] == ["20", "10", "30"]
    (note,) = layout.resume_notes(tmp_path)
    assert "step_00000030: newer than step_00000020" in note


def test_nothing_complete_is_no_place_to_start_afresh(tmp_path: Path) -> None:
    assert layout.resume_candidates(tmp_path) == [] == layout.resume_notes(tmp_path)
    assert layout.find_latest(tmp_path / "absent") is None
    path = write_checkpoint(tmp_path, 1)
    (path / "files.json").unlink()
    for function in (layout.find_latest, layout.resume_candidates, layout.resume_notes):
        with pytest.raises(DamagedCheckpoint, match=r"no complete checkpoint is left .*files.json: missing"):
            function(tmp_path)
    shutil.rmtree(path)
    with pytest.raises(DamagedCheckpoint, match="only the file latest"):
        layout.find_latest(tmp_path)
    with pytest.raises(ValueError, match="no checkpoint here"):
        layout.read_state(tmp_path / "nothing")


def test_state_is_json() -> None:
    with pytest.raises(ValueError, match=r"state.json: not JSON"):
        files.to_json("state.json", {"loss": float("nan")})


def test_reading_the_state_needs_no_torch(tmp_path: Path) -> None:
    write_checkpoint(tmp_path, 3)
    code = (
        "import sys\n"
        "from megatron_synE.checkpoint import find_latest, read_state\n"
        "assert read_state(sys.argv[1])['step'] == 3\n"
        "assert 'torch' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=True)
