"""Installations on poorer machines: no compiler, no OpenMP, no nvcc; and what nvcc has built."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from megatron_synE.kernels import _native, selection

ROOT = Path(__file__).parents[2]

FALLBACK = """
import sys, torch
sys.modules["megatron_synE._kernels_cpu"] = None
from megatron_synE import kernels
x, w = torch.randn(4, 8, requires_grad=True), torch.ones(8, requires_grad=True)
for _ in range(2):
    y, summed = kernels.add_rms_norm(x, x, w, 1e-5)
    (kernels.swiglu(y).sum() + summed.sum()).backward()
loss, _ = kernels.linear_cross_entropy(x, torch.randn(10, 8), torch.arange(4), torch.ones(4), 10)
loss.backward()
query = torch.randn(4, 1, 2, 2, 8)
kernels.causal_attention(query, query[..., 0, :], query[..., 0, :], 0.3)
assert kernels.choice("rms_norm", "cpu").implementation == "reference"
print(kernels.choice("rms_norm", "cpu").reason)
"""

WITHOUT_OPENMP = """
import importlib.util, sys, torch
spec = importlib.util.spec_from_file_location("megatron_synE._kernels_cpu", sys.argv[1])
module = importlib.util.module_from_spec(spec)
spec.loader.exec_module(module)
sys.modules["megatron_synE._kernels_cpu"] = module
assert not module.has_openmp() and module.max_threads() == 1
from megatron_synE import kernels
from megatron_synE.kernels import reference
x, w = torch.randn(33, 65), torch.randn(65)
assert kernels.choice("rms_norm", "cpu").implementation == "compiled"
torch.testing.assert_close(kernels.rms_norm(x, w, 1e-5), reference.rms_norm(x, w, 1e-5))
"""


def python(*arguments: str, cwd: Path = ROOT, **environment: str) -> subprocess.CompletedProcess[str]:
    """Without the switches that this session's own build was made with."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("SYNE_")}
    return subprocess.run(
        [sys.executable, *arguments], cwd=cwd, env={**inherited, **environment}, capture_output=True, text=True
    )


def source_tree(folder: Path) -> Path:
    (folder / "megatron_synE").mkdir(parents=True)
    for name in ("setup.py", "pretrain_llama3_synE.py"):
        shutil.copy(ROOT / name, folder)
    shutil.copytree(ROOT / "tools", folder / "tools")
    shutil.copy(ROOT / "megatron_synE" / "__init__.py", folder / "megatron_synE")
    shutil.copytree(ROOT / "csrc", folder / "csrc")
    return folder


def test_without_a_compiler_the_build_succeeds_and_says_so_once(tmp_path: Path) -> None:
    tree = source_tree(tmp_path / "tree")
    result = python("setup.py", "build", cwd=tree, CC="/bin/false", CXX="/bin/false")
    assert result.returncode == 0, result.stderr
    assert result.stderr.count("no working C++17 compiler") == 1
    assert not list(tree.rglob("*.so"))


def test_without_extensions_the_reference_runs_and_says_so_once() -> None:
    result = python("-c", FALLBACK)
    assert result.returncode == 0, result.stderr
    assert "no extension was built for cpu" in result.stdout
    assert result.stderr.count("plain torch is used on cpu") == 1


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="no g++ on this machine")
def test_without_openmp_and_nvcc_the_host_kernels_work(tmp_path: Path) -> None:
    tree = source_tree(tmp_path / "tree")
    shutil.rmtree(tree / "csrc" / "index")
    result = python(
        "setup.py", "build_ext", "--build-lib", str(tmp_path), cwd=tree, SYNE_BUILD_OPENMP="0", SYNE_BUILD_CUDA="0"
    )
    assert result.returncode == 0, result.stderr
    assert "without OpenMP" in result.stderr
    (built,) = (tmp_path / "megatron_synE").glob("*.so")
    assert "_kernels_cpu" in built.name
    result = python("-c", WITHOUT_OPENMP, str(built))
    assert result.returncode == 0, result.stderr


@pytest.mark.requires_nvcc
@pytest.mark.skipif(shutil.which("nvcc") is None, reason="no CUDA compiler on this machine")
@pytest.mark.skipif(
    "0" in (os.environ.get("SYNE_BUILD_CUDA"), os.environ.get("SYNE_BUILD_EXTENSIONS")),
    reason="built with SYNE_BUILD_CUDA=0 or SYNE_BUILD_EXTENSIONS=0",
)
def test_nvcc_has_built_every_kernel_for_both_generations() -> None:
    module = _native.extension("cuda")
    assert module is not None, "nvcc is there, but the CUDA kernels were not built: reinstall and read the messages"
    cpu = _native.extension("cpu")
    expected = {name for name in dir(cpu) if not name.startswith("_")}
    expected -= {"instruction_set", "made_by_intel", "has_openmp", "max_threads", "set_heap_limits", "clear_pages"}
    # Attention on a GPU is torch's.
    expected -= {"causal_softmax_forward", "causal_softmax_backward"}
    assert expected <= set(dir(module)), "an op of the host has no CUDA kernel"
    assert module.__file__ is not None
    binary = Path(module.__file__).read_bytes()
    num_sources = len(list((ROOT / "csrc" / "cuda").glob("*.cu")))
    for generation in (b"sm_80", b"sm_90"):
        assert binary.count(generation) >= num_sources, f"device code for {generation.decode()} is missing"


def test_a_gpu_or_driver_that_does_not_take_the_kernels_falls_back_with_the_reason(monkeypatch, caplog) -> None:
    refusal = "no kernel image is available for execution on the device"
    module = SimpleNamespace(problem=lambda: refusal, cuda_version=13000)
    monkeypatch.setitem(sys.modules, "megatron_synE._kernels_cuda", module)
    cached = (_native.extension, _native.problem, selection._default)
    for function in cached:
        function.cache_clear()
    try:
        choices = [selection.choice(op, "cuda") for op in selection.OPS]
    finally:
        for function in cached:
            function.cache_clear()
    assert {choice.implementation for choice in choices} == {"reference"}
    assert all(refusal in choice.reason and "CUDA 13" in choice.reason for choice in choices)
    assert caplog.text.count(refusal) == 1


@pytest.mark.requires_nvcc
@pytest.mark.skipif(shutil.which("nvcc") is None, reason="no CUDA compiler on this machine")
@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU on this machine")
def test_kernels_without_a_gpu_say_so() -> None:
    module = _native.extension("cuda")
    if module is None:
        pytest.skip("the CUDA kernels were not built")
    assert module.problem()


def test_doctor_reports_and_fails_on_what_is_missing(tmp_path: Path) -> None:
    report = python("tools/doctor.py")
    assert report.returncode == 0, report.stderr
    assert "rms_norm" in report.stdout and "megatron-core" in report.stdout
    config = tmp_path / "job.yaml"
    config.write_text("model: {preset: llama3_tiny}\n")
    missing = python("tools/doctor.py", "--config", str(config), "--model.transformer_impl", "transformer_engine")
    if "Transformer Engine is not installed" in report.stdout:
        assert missing.returncode == 1, missing.stderr
        assert "pip install" in missing.stdout
