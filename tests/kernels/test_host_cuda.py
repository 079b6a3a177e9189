"""The CUDA kernels and the Python that calls them, on the host: see host_cuda/__init__.py."""

from __future__ import annotations

import subprocess
import sys

import pytest

from tests.kernels.host_cuda import build, load, why_not
from tests.kernels.host_cuda.build import ROOT
from tests.kernels.host_cuda.exercise import check_cases

pytestmark = [pytest.mark.slow, pytest.mark.skipif(why_not() is not None, reason=str(why_not()))]


def test_the_kernels_pass_their_tests_on_the_emulated_gpu() -> None:
    """Every test that takes its device from `oracle.devices()`."""
    command = [sys.executable, "-m", "pytest", "-p", "tests.kernels.host_cuda.plugin", "tests/kernels"]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout
    assert " passed" in result.stdout and " skipped" not in result.stdout, result.stdout


def test_every_kernel_agrees_with_float64_in_every_order_of_its_threads() -> None:
    assert check_cases(load(build())) == []
