from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from megatron_synE.checkpoint import layout


def _save(root: Path, step: int, keep: int | None = None, content: str = "x") -> Path:
    directory = layout.prepare(root, step)
    state = {"format_version": layout.FORMAT_VERSION, "step": step}
    layout.write_text(directory / layout.STATE_FILE, layout.to_json(layout.STATE_FILE, state))
    (directory / "weights.distcp").write_text(content)
    layout.write_file_list(directory)
    return layout.publish(root, step, keep)


def test_latest_names_the_newest_save(tmp_path: Path) -> None:
    assert layout.find_latest(tmp_path) is None
    _save(tmp_path, 10)
    path = _save(tmp_path, 20)
    assert layout.find_latest(tmp_path) == path == tmp_path / "step_00000020"
    assert layout.read_state(tmp_path)["step"] == 20
    assert layout.read_state(tmp_path / "step_00000010")["step"] == 10
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["latest", "step_00000010", "step_00000020"]


def test_keep_counts_the_newest_and_never_deletes_latest(tmp_path: Path) -> None:
    for step in (10, 20, 30):
        _save(tmp_path, step, keep=2)
    assert [path.name for path in layout.complete_checkpoints(tmp_path)] == ["step_00000020", "step_00000030"]
    _save(tmp_path, 5, keep=1)  # a run that was rolled back: the newest is not the highest number
    assert [path.name for path in layout.complete_checkpoints(tmp_path)] == ["step_00000005"]


def test_the_same_step_is_replaced(tmp_path: Path) -> None:
    _save(tmp_path, 10, content="old")
    path = _save(tmp_path, 10, content="new")
    assert (path / "weights.distcp").read_text() == "new"
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["latest", "step_00000010"]


def test_a_save_removes_what_a_killed_one_left(tmp_path: Path) -> None:
    (tmp_path / ".step_00000007.tmp").mkdir()
    (tmp_path / ".step_00000007.tmp" / "half").touch()
    _save(tmp_path, 8)
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["latest", "step_00000008"]


def test_damage_is_named(tmp_path: Path) -> None:
    path = _save(tmp_path, 1, content="weights")
    layout.check_files(path)
    (path / "weights.distcp").write_text("weight")
    with pytest.raises(ValueError, match=r"weights.distcp: 6 bytes, written were 7"):
        layout.check_files(path)
    (path / "weights.distcp").unlink()
    with pytest.raises(ValueError, match=r"weights.distcp: missing"):
        layout.check_files(path)


@pytest.mark.parametrize(
    ("content", "message"),
    [("{", "broken"), ("[]", "not a JSON object"), ('{"format_version": 99}', "format_version is 99")],
)
def test_bad_state_is_one_error(tmp_path: Path, content: str, message: str) -> None:
    path = _save(tmp_path, 1)
    (path / layout.STATE_FILE).write_text(content)
    with pytest.raises(ValueError, match=message) as error:
        layout.read_state(path)
    assert str(path) in str(error.value)


def test_bad_pointers(tmp_path: Path) -> None:
    _save(tmp_path, 1)
    (tmp_path / "latest").write_text("step_00000002\n")
    with pytest.raises(ValueError, match=r"step_00000002, which is not there \(but step_00000001"):
        layout.find_latest(tmp_path)
    (tmp_path / "latest").write_text("../elsewhere\n")
    with pytest.raises(ValueError, match="not the name of a checkpoint"):
        layout.find_latest(tmp_path)
    with pytest.raises(ValueError, match="no checkpoint here"):
        layout.read_state(tmp_path / "nothing")


def test_state_is_json() -> None:
    with pytest.raises(ValueError, match=r"state.json: not JSON"):
        layout.to_json("state.json", {"loss": float("nan")})


def test_reading_the_state_needs_no_torch(tmp_path: Path) -> None:
    _save(tmp_path, 3)
    code = (
        "import sys\n"
        "from megatron_synE.checkpoint import find_latest, read_state\n"
        "assert read_state(sys.argv[1])['step'] == 3\n"
        "assert 'torch' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=True)
