"""Transformer Engine and Apex, broken or in need of a GPU: training does without them, or says in one line why not."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from tests.helpers import fake_packages, small_job
from tests.helpers.commands import ROOT, pretrain, run, run_tool, succeeded

# The trainer's command line on a machine that says it has a GPU: it is asked before anything starts.
ON_A_GPU = f"""
import sys
import torch
torch.cuda.is_available, torch.cuda.device_count = lambda: True, lambda: 1
sys.path.insert(0, {str(ROOT)!r})
from pretrain_llama3_synE import main
raise SystemExit(main(sys.argv[1:]))
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    small_job.write_job(tmp_path / "job", measured=False, training={"train_steps": 2})
    return tmp_path / "job"


@pytest.mark.skipif(torch.cuda.is_available(), reason="about machines without a GPU")
def test_training_on_the_cpu_does_without_transformer_engine(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    packages = fake_packages.transformer_engine(tmp_path / "packages", fake_packages.NO_DRIVER)
    monkeypatch.setenv("PYTHONPATH", fake_packages.path_with(packages))
    result = succeeded(pretrain(1, "--config", small_job.JOB_FILE, cwd=folder))
    assert "Transformer Engine" not in result.stderr
    succeeded(run_tool("verify_checkpoint", "--checkpoint", folder / small_job.RUN))


@pytest.mark.parametrize(
    "source, version, machine, message",
    [
        (fake_packages.NO_LIBRARY, "2.11.0", "gpu", "2.11.0 is installed, but cannot be imported (OSError: libcudnn"),
        (fake_packages.NO_DRIVER, "2.11.0", "no gpu", "2.11.0 needs an NVIDIA GPU, and torch sees none"),
        ("", "2.20.2", "gpu", "2.20.2 is installed, but megatron-core takes >=2.9,<2.12; run `pip install"),
    ],
    ids=["broken", "no gpu", "out of range"],
)
def test_one_that_is_asked_for_and_cannot_run_is_one_clear_error(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, source: str, version: str, machine: str, message: str
) -> None:  # fmt: skip
    if machine == "no gpu" and torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    packages = fake_packages.transformer_engine(tmp_path / "packages", source, version)
    monkeypatch.setenv("PYTHONPATH", fake_packages.path_with(packages))
    started = ["-c", ON_A_GPU] if machine == "gpu" else [ROOT / "pretrain_llama3_synE.py"]
    result = run(
        sys.executable, *started, "--config", small_job.JOB_FILE, "--model.transformer_impl", "transformer_engine",
        cwd=folder,
    )  # fmt: skip
    assert result.returncode == 1
    (told,) = [line for line in result.stderr.splitlines() if "Transformer Engine" in line]
    assert f"model.transformer_impl: Transformer Engine {message}" in told
    assert told.endswith("or use model.transformer_impl fused")
    assert "Traceback" not in result.stderr
    assert sorted(path.name for path in folder.iterdir()) == [small_job.CORPORA, small_job.JOB_FILE], "nothing is left"
    if machine == "no gpu":
        job = folder / small_job.JOB_FILE
        doctor = run_tool("doctor", "--config", job, "--model.transformer_impl", "transformer_engine")
        assert doctor.returncode == 1, doctor.stderr
        assert told.partition("model.transformer_impl: ")[2] in doctor.stdout, "the trainer and the doctor say the same"


@pytest.mark.parametrize(
    "install, found",
    [(fake_packages.other_apex, "Apex: NOT NVIDIA's"), (fake_packages.nvidia_apex, "Apex: NVIDIA's\n")],
)
def test_the_doctor_tells_one_apex_from_the_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, install: Callable[[Path], Path], found: str
) -> None:
    monkeypatch.setenv("PYTHONPATH", fake_packages.path_with(install(tmp_path)))
    assert found in succeeded(run_tool("doctor")).stdout
