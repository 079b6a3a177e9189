"""A tensor that is described now and read when it is its turn: what the streaming writers take."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class LazyTensor:
    """Name, shape and dtype of what `read` returns."""

    name: str
    shape: tuple[int, ...]
    dtype: torch.dtype
    read: Callable[[], torch.Tensor]

    @property
    def size_bytes(self) -> int:
        """Size of the elements."""
        return torch.Size(self.shape).numel() * self.dtype.itemsize
