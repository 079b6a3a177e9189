"""Every CUDA kernel under the address, undefined-behaviour and thread sanitizers, one fibre for each thread."""

from __future__ import annotations

import pytest

from tests.kernels.host_cuda import build, why_not
from tests.kernels.host_cuda.build import Sanitizer
from tests.kernels.host_cuda.sanitizers import exercise_with

pytestmark = [pytest.mark.slow, pytest.mark.skipif(why_not() is not None, reason=str(why_not()))]


@pytest.mark.parametrize("sanitizer", ["address", "thread"])
def test_the_sanitizers_find_nothing(sanitizer: Sanitizer) -> None:
    result = exercise_with(sanitizer, build(sanitizer))
    assert result.returncode == 0 and "WARNING: ThreadSanitizer" not in result.stderr, result.stdout + result.stderr
