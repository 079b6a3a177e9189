"""The command behind `make gpu`: without a GPU, with stages that are not there, with carried wheels."""

from __future__ import annotations

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import gpu_all
import pytest
from gpu import stages, wheels
from gpu.summary import BARS

SCRIPT = Path(gpu_all.__file__)
NO_GPU = {**os.environ, "CUDA_VISIBLE_DEVICES": ""}


def run(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(SCRIPT), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, env=NO_GPU, timeout=300, check=False)


def test_without_a_gpu_it_says_so_in_one_line() -> None:
    result = run()
    assert result.returncode == 1
    assert len(result.stdout.splitlines()) == 1 and "no GPU" in result.stdout
    assert not result.stderr


def test_an_unknown_stage_is_named_with_those_there_are() -> None:
    result = run("--stages", "doctor", "nope")
    assert result.returncode == 2 and "no stage nope" in result.stderr and "whole_8b" in result.stderr


@pytest.mark.slow
def test_a_rehearsed_stage_leaves_its_record_and_the_table(tmp_path: Path) -> None:
    result = run("--rehearse", "--stages", "doctor", "--results", tmp_path, "--commit", "abc")
    assert result.returncode == 0, result.stdout + result.stderr
    record = gpu_all.read_records(tmp_path)["doctor"]
    assert (record["status"], record["commit"], record["machine"]) == ("passed", "abc", "rehearsal")
    summary = (tmp_path / "summary.txt").read_text()
    assert summary.count("unrun") == len(BARS)
    assert run("--summary", tmp_path).stdout == summary


def test_the_rehearsal_plays_every_stage_by_the_same_commands() -> None:
    real, tiny = stages.gpu_stages(), stages.rehearsal_stages()
    assert [stage.name for stage in real] == [stage.name for stage in tiny]
    for one, other in zip(real, tiny, strict=True):
        assert one.command[:2] == other.command[:2] and one.limit_seconds == other.limit_seconds
        assert "cpu" not in one.command and "--tiny" not in one.command
    assert sum(stage.limit_seconds for stage in real) <= 30 * 60
    assert all((SCRIPT.parent.parent / stage.command[1]).is_file() for stage in real)


def test_tests_that_are_named_exist() -> None:
    for named in stages.ONE_PROCESS_TESTS:
        path, _, function = named.partition("::")
        text = (SCRIPT.parent.parent / path).read_text()
        assert not function or f"def {function}(" in text, named


def make_wheel(folder: Path, name: str, files: dict[str, str]) -> None:
    with zipfile.ZipFile(folder / name, "w") as archive:
        for path, text in files.items():
            archive.writestr(path, text)


def test_wheels_are_unpacked_for_the_path(tmp_path: Path) -> None:
    carried, target = tmp_path / "carried", tmp_path / "packages"
    carried.mkdir()
    tag = f"cp{sys.version_info.major}{sys.version_info.minor}"
    make_wheel(carried, f"one-1-{tag}-{tag}-linux_x86_64.whl", {"one/__init__.py": "", "one-1.dist-info/METADATA": "m"})
    make_wheel(carried, "two-2-py3-none-any.whl", {"two.py": "x = 2", "two-2.data/purelib/three/part.py": ""})
    target.mkdir()
    (target / "old.py").touch()
    wheels.unpack(carried, target)
    assert (target / "one" / "__init__.py").is_file() and (target / "one-1.dist-info" / "METADATA").is_file()
    assert (target / "two.py").is_file() and (target / "three" / "part.py").is_file()
    assert not (target / "old.py").exists()


def test_wheels_of_another_python_are_refused_with_the_fix(tmp_path: Path) -> None:
    make_wheel(tmp_path, "one-1-cp37-cp37m-linux_x86_64.whl", {})
    with pytest.raises(ValueError, match=r"no wheel for cp3.*wheels\.py .* --python-version 3"):
        wheels.unpack(tmp_path, tmp_path / "packages")
