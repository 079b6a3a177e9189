"""The compiled extensions and how to call them.

Both halves export the same functions: pointers as integers (0 for none), sizes and strides in elements, an element type
code. The CUDA half takes the stream as one more argument, and for the optimizer lists of tensors where the other half
takes one.
"""

from __future__ import annotations

import importlib
import logging
from functools import cache
from types import ModuleType
from typing import Any

import torch

logger = logging.getLogger(__name__)

# csrc/cpu/common.h has the same codes.
ELEMENT_CODES = {torch.float32: 0, torch.bfloat16: 1}

_EXTENSIONS = {"cpu": "megatron_synE._kernels_cpu", "cuda": "megatron_synE._kernels_cuda"}


@cache
def extension(device_type: str) -> ModuleType | None:
    """The compiled extension for `device_type`, or None where it was not built; says so once."""
    name = _EXTENSIONS.get(device_type)
    if name is None:
        return None
    try:
        return importlib.import_module(name)
    except ImportError as error:
        logger.warning("%s is not available (%s): plain torch is used on %s", name, error, device_type)
        return None


@cache
def problem(device_type: str) -> str | None:
    """Why the compiled kernels do not run on `device_type`: they were not built, or the driver or the GPU does not
    take them; says so once."""
    module = extension(device_type)
    if module is None:
        return f"no extension was built for {device_type}"
    refusal = module.problem() if device_type == "cuda" else ""
    if not refusal:
        return None
    reason = f"the kernels built with CUDA {module.cuda_version // 1000} do not run on this GPU or driver: {refusal}"
    logger.warning("%s; plain torch is used", reason)
    return reason


def address(tensor: torch.Tensor | None) -> int:
    return 0 if tensor is None else tensor.data_ptr()


def code(tensor: torch.Tensor) -> int:
    return ELEMENT_CODES[tensor.dtype]


def launch(function: str, device: torch.device, *arguments: Any) -> Any:
    """Call `function` of the extension for `device`, on the current stream where that is a GPU."""
    module = extension(device.type)
    assert module is not None, f"no compiled kernels for {device.type}"
    if device.type == "cuda":
        with torch.cuda.device(device):
            return getattr(module, function)(*arguments, torch.cuda.current_stream(device).cuda_stream)
    return getattr(module, function)(*arguments)
