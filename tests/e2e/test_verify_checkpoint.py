"""tools/verify_checkpoint.py on sound and on damaged checkpoints."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from megatron_synE.checkpoint.files import DamagedCheckpoint
from megatron_synE.checkpoint.verify import verify
from tests.helpers.checkpoint_files import flip_bit, write_checkpoint
from tests.helpers.commands import run_tool, succeeded


def test_each_checkpoint_is_a_line_and_damage_is_status_1(tmp_path: Path) -> None:
    paths = [write_checkpoint(tmp_path, step) for step in (1, 2, 3)]
    lines = succeeded(run_tool("verify_checkpoint", "--checkpoint", tmp_path, "--all", "--values")).stdout.splitlines()
    assert [line.split()[:2] for line in lines] == [["sound", str(path)] for path in paths]
    assert all("GB/s" in line for line in lines)

    flip_bit(paths[1] / "__0_0.distcp", 5000)
    result = run_tool("verify_checkpoint", "--checkpoint", tmp_path, "--all")
    assert result.returncode == 1
    assert [line.split()[0] for line in result.stdout.splitlines()] == ["sound", "DAMAGED", "sound"]
    assert f"{paths[1]}/__0_0.distcp: weight: damaged" in result.stdout
    assert "Traceback" not in result.stderr
    latest = succeeded(run_tool("verify_checkpoint", "--checkpoint", tmp_path))
    assert latest.stdout.startswith(f"sound    {paths[2]} ")
    nothing = run_tool("verify_checkpoint", "--checkpoint", tmp_path / "nothing")
    assert nothing.returncode == 1 and "no checkpoint here" in nothing.stderr


@pytest.mark.parametrize("name", ["state.json", "index.json", "metadata.json", "files.json", "__0_0.distcp", "extra"])
def test_every_file_is_read(tmp_path: Path, name: str) -> None:
    from megatron_synE.checkpoint.files import write_file_list

    path = write_checkpoint(tmp_path, 1)
    (path / "extra").write_bytes(b"read by no load" * 100)
    write_file_list(path, {})
    assert verify(path) == sum(file.stat().st_size for file in path.iterdir() if file.name != "files.json")
    flip_bit(path / name, 8 * (path / name).stat().st_size // 2)
    with pytest.raises(DamagedCheckpoint, match=name):
        verify(path)


def test_values_that_are_not_finite_are_found_if_asked(tmp_path: Path) -> None:
    path = write_checkpoint(tmp_path, 1, {"weight": torch.tensor([[1.0, 2.0], [3.0, float("nan")]])})
    verify(path)
    with pytest.raises(DamagedCheckpoint, match="weight holds NaN or infinity"):
        verify(path, values=True)
