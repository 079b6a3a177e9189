"""A wheel of the project, installed elsewhere: its commands reach the tools and the trainer."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.helpers.commands import ROOT, environment

LOAD_ALL = """
import sys
from importlib.metadata import distributions
from pathlib import Path
(ours,) = [found for found in distributions(path=[sys.argv[1]]) if found.name == "megatron-syne"]
for entry in ours.entry_points:
    function = entry.load()
    assert Path(sys.modules[entry.module].__file__).is_relative_to(sys.argv[1]), entry
    print(entry.name)
"""


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the installed wheel; the extensions are left out, which takes a minute less."""
    source, target = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("site")
    for name in ("megatron_synE", "tools"):
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("*.so", "__pycache__"))
    for name in ("setup.py", "pyproject.toml", "pretrain_llama3_synE.py"):
        shutil.copy(ROOT / name, source)
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-build-isolation", "--no-index"]
    subprocess.run(
        [*pip, "--target", str(target), str(source)], env={**environment(), "SYNE_BUILD_EXTENSIONS": "0"}, check=True
    )
    return target


def run_installed(site: Path, *command: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *command], cwd=site, env={**environment(), "PYTHONPATH": str(site)}, text=True,
        capture_output=True, timeout=120,
    )  # fmt: skip


def test_every_command_is_there_and_is_the_installed_one(site: Path) -> None:
    result = run_installed(site, "-c", LOAD_ALL, str(site))
    assert result.returncode == 0, result.stderr
    commands = {path.name for path in (site / "bin").glob("syne-*")}
    assert set(result.stdout.split()) == commands and {"syne-pretrain", "syne-preprocess"} <= commands


def test_a_command_runs_and_names_itself(site: Path) -> None:
    shown = run_installed(site, "bin/syne-verify-corpus", "--help")
    assert shown.returncode == 0 and shown.stdout.startswith("usage: syne-verify-corpus"), shown.stderr
    refused = run_installed(site, "bin/syne-pretrain", "--optimizer.lrr", "1")
    assert refused.returncode == 1 and "did you mean --optimizer.lr?" in refused.stderr


def test_benchmarks_are_installed_with_the_table_of_their_files(site: Path) -> None:
    code = "from megatron_synE.evaluation.tasks.task_files import resolve_tasks; print(len(resolve_tasks(['all'])))"
    shown = run_installed(site, "-c", code)
    assert shown.stdout == "16\n", shown.stderr
    assert (site / "megatron_synE/evaluation/tasks/README.md").is_file()


def test_a_report_finds_its_templates(site: Path, tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").write_text("")
    done = run_installed(site, "bin/syne-report", "--run", str(tmp_path), "--output", str(tmp_path / "report.html"))
    assert done.returncode == 0, done.stderr
    assert "plotly.js" in (tmp_path / "report.html").read_text(encoding="utf-8")
