"""The exercise of the kernels in a process of its own, which loads a sanitizer's library before all else."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from tests.kernels.host_cuda.build import ROOT, Sanitizer, runtime


def exercise_with(sanitizer: Sanitizer, extension: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """The exercise in a process that has the sanitizer's library loaded first."""
    command = [sys.executable, "-m", "tests.kernels.host_cuda.exercise", str(extension), "--order", "forward"]
    environment = {
        **os.environ,
        "LD_PRELOAD": runtime(sanitizer),
        "ASAN_OPTIONS": "detect_leaks=0",  # the interpreter's
        "OMP_NUM_THREADS": "1",
    }
    return subprocess.run(
        [*command, *arguments], cwd=ROOT, env=environment, capture_output=True, text=True, check=False
    )
