"""Which software a record names."""

from __future__ import annotations

import importlib.util
import shutil
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

from megatron_synE import __version__
from megatron_synE.runtime import software

pytestmark = pytest.mark.skipif(shutil.which("git") is None, reason="no git")


def git(folder: Path, *arguments: str) -> str:
    identity = ("-c", "user.name=a", "-c", "user.email=a@example.org", "-c", "commit.gpgsign=false")
    command = ["git", "-C", str(folder), *identity, *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


def copied(folder: Path) -> ModuleType:
    """The module as it would lie in a folder."""
    folder.mkdir(parents=True)
    path = Path(shutil.copy(software.__file__, folder / "software.py"))
    spec = importlib.util.spec_from_file_location("copied_software", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_a_checkout_names_its_commit_and_whether_it_was_changed(tmp_path: Path) -> None:
    module = copied(tmp_path / "package")
    git(tmp_path, "init")
    assert module.commit() is None, "git does not know the file"
    git(tmp_path, "add", "package")
    git(tmp_path, "commit", "-m", "one")
    head = git(tmp_path, "rev-parse", "HEAD")
    (tmp_path / "notes").write_text("not a file of the checkout")
    assert module.commit() == head
    (tmp_path / "package" / "software.py").write_text("changed")
    assert module.commit() == f"{head}+changes"


def test_an_installation_in_somebody_elses_checkout_has_no_commit(tmp_path: Path) -> None:
    git(tmp_path, "init")
    (tmp_path / "theirs").write_text("code")
    git(tmp_path, "add", "theirs")
    git(tmp_path, "commit", "-m", "theirs")
    assert copied(tmp_path / ".venv" / "package").commit() is None


def test_without_git_there_is_no_commit(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert software.commit() is None


def test_versions() -> None:
    found = software.versions(more=("plotly", "no-such-package"))
    assert found["python"] == sys.version.split()[0] and found["megatron_synE"] == __version__
    assert {"torch", "megatron-core", "plotly"} <= found.keys() and "no-such-package" not in found
