"""Writes a safetensors file tensor by tensor; the library's own writer takes them all at once, and copies them.

The format: the header's length as 8 bytes, the header as JSON (name → dtype, shape, place), the tensors' bytes.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Sequence
from typing import Any, Protocol

import torch

from megatron_synE.checkpoint.lazy_tensor import LazyTensor

DTYPES = {"BF16": torch.bfloat16, "F16": torch.float16, "F32": torch.float32}
"""Formats of weights, as safetensors names them."""

_NAMES = {dtype: name for name, dtype in DTYPES.items()}


class Stream(Protocol):
    """What is written to."""

    def write(self, content: Any) -> int:
        """Append bytes."""


def write_safetensors(stream: Stream, tensors: Sequence[LazyTensor]) -> None:
    """Write a whole file; each tensor is read when it is its turn."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    start = 0
    for tensor in tensors:
        end = start + tensor.size_bytes
        header[tensor.name] = {"dtype": _NAMES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [start, end]}
        start = end
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)  # the tensors begin at a multiple of 8
    stream.write(struct.pack("<Q", len(text)) + text)
    for tensor in tensors:
        content = tensor.read()
        assert (tuple(content.shape), content.dtype) == (tensor.shape, tensor.dtype), tensor.name
        stream.write(content.contiguous().view(-1).view(torch.uint8).numpy())
