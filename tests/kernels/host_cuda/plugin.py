"""`pytest -p tests.kernels.host_cuda.plugin tests/kernels`: the kernels' tests on the emulated GPU.

`oracle.devices()` is then ["cuda"], and of all tests those run that take their device from there. What torch itself
computes on a GPU, such as attention, is not ours to test: OF_TORCH names these files.
"""

from __future__ import annotations

from contextlib import ExitStack

import pytest

from tests.kernels import oracle
from tests.kernels.host_cuda.build import build, load
from tests.kernels.host_cuda.gpu import emulated_gpu

OF_TORCH = ("test_causal_attention.py",)
_active = pytest.StashKey[ExitStack]()


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--host-cuda-sanitizer", choices=["none", "address", "thread"], default="none")


def pytest_configure(config: pytest.Config) -> None:
    stack = config.stash[_active] = ExitStack()
    module = load(build(config.getoption("--host-cuda-sanitizer")))
    stack.enter_context(emulated_gpu(module))
    oracle.devices = lambda: ["cuda"]


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    chosen = []
    for item in items:
        params = getattr(item, "callspec", None)
        if params is not None and params.params.get("device") == "cuda" and item.path.name not in OF_TORCH:
            chosen.append(item)
    config.hook.pytest_deselected(items=[item for item in items if item not in chosen])
    items[:] = chosen


def pytest_unconfigure(config: pytest.Config) -> None:
    config.stash[_active].close()
