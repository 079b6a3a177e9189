"""Counts the calls that make the host wait for its device; on CPU tensors, for what would wait is known by name.

A call is put down to the innermost function of our package or of megatron-core that made it. A wait inside of torch's
own C++ is seen too, by the op that brings a number to the host.
"""

from __future__ import annotations

import functools
import sys
from collections import Counter
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any
from unittest.mock import patch

import torch
from torch.utils._python_dispatch import TorchDispatchMode

METHODS = ("item", "tolist", "cpu", "numpy", "nonzero", "masked_select", "unique", "__bool__", "__int__", "__float__",
           "__index__")  # fmt: skip
"""Of a tensor: its value, or a shape that depends on its value, comes to the host."""
FUNCTIONS = ("nonzero", "masked_select", "unique", "argwhere")
"""Of torch: the same."""
CUDA_FUNCTIONS = ("synchronize", "Event.synchronize", "Stream.synchronize")
OPS = ("aten::_local_scalar_dense", "aten::nonzero", "aten::masked_select", "aten::is_nonzero", "aten::equal")
COPIES = ("to", "cuda", "copy_")
"""Wait where the copy is from or to pageable memory of the host; from pinned memory with `non_blocking` they do not."""


class HostWaits(TorchDispatchMode):
    """Inside of it, `counts` fills with `(place, call)`; the place is `package/file.py:function`."""

    def __init__(self) -> None:
        super().__init__()
        self.counts: Counter[tuple[str, str]] = Counter()
        self._patches = ExitStack()
        self._inside = False

    def __enter__(self) -> HostWaits:
        for owner, names in ((torch.Tensor, METHODS), (torch, FUNCTIONS)):
            for name in names:
                self._watch(owner, name)
        for name in CUDA_FUNCTIONS:
            *path, last = name.split(".")
            self._watch(functools.reduce(getattr, path, torch.cuda), last)
        for name in ("__getitem__", "__setitem__"):
            self._watch(torch.Tensor, name, lambda args, kwargs: _reads_its_index(args[1]))
        for name in COPIES:
            self._watch(torch.Tensor, name, _blocks)
        for name in ("tensor", "as_tensor"):
            self._watch(torch, name, lambda args, kwargs: kwargs.get("device") is not None)
        super().__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)
        self._patches.close()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.name().split(".")[0]
        if name in OPS and not self._inside:
            self._count(name)
        return func(*args, **(kwargs or {}))

    def _watch(self, owner: Any, name: str, waits: Callable[[Any, Any], bool] = lambda args, kwargs: True) -> None:
        original = getattr(owner, name)

        @functools.wraps(original)
        def call(*args: Any, **kwargs: Any) -> Any:
            if self._inside or not waits(args, kwargs):
                return original(*args, **kwargs)
            self._count(name)
            self._inside = True
            try:
                return original(*args, **kwargs)
            finally:
                self._inside = False

        self._patches.enter_context(patch.object(owner, name, call))

    def _count(self, call: str) -> None:
        self.counts[_place(), call] += 1


def _place() -> str:
    frame = sys._getframe(2)
    while frame is not None:
        file = frame.f_code.co_filename
        for package in ("megatron_synE/", "megatron/core/"):
            if package in file:
                return f"{package}{file.rpartition(package)[2]}:{frame.f_code.co_name}"
        frame = frame.f_back  # type: ignore[assignment]
    return "elsewhere"


def _reads_its_index(index: Any) -> bool:
    """Masks need a count of what is true, and a whole number in a tensor is an index like any other."""
    parts = index if isinstance(index, tuple) else (index,)
    tensors = [part for part in parts if isinstance(part, torch.Tensor)]
    return any(part.dtype in (torch.bool, torch.uint8) or part.dim() == 0 for part in tensors)


def _blocks(args: Any, kwargs: Any) -> bool:
    """Whether a copy names another place than where the tensor is; on a GPU that would be another device."""
    others = args[1:]
    if kwargs.get("non_blocking"):
        return False
    if not others and not kwargs:
        return True  # cuda()
    named = [*others[:1], kwargs.get("device")]
    return any(isinstance(other, str | torch.device) for other in named)
