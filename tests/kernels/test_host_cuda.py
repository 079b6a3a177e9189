"""The CUDA kernels and the Python that calls them, on the host: see host_cuda/__init__.py."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.kernels.host_cuda import why_not

ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.skipif(why_not() is not None, reason=str(why_not()))


@pytest.mark.slow
def test_the_kernels_pass_their_tests_on_the_emulated_gpu() -> None:
    """Every test that takes its device from `oracle.devices()`."""
    command = [sys.executable, "-m", "pytest", "-p", "tests.kernels.host_cuda.plugin"]
    result = subprocess.run([*command, "tests/kernels"], cwd=ROOT, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout
    assert " passed" in result.stdout and " skipped" not in result.stdout, result.stdout
