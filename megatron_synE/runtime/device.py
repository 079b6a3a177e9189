"""The device of this process, and what one asks of it."""

from __future__ import annotations

import os
import platform
import resource
from typing import Literal

import torch


def has_gpu() -> bool:
    """Whether torch sees a GPU. CUDA starts with that question: a run calls `set_cuda_environment` before."""
    return torch.cuda.is_available()


def choose_device(wish: Literal["auto", "cuda", "cpu"], local_rank: int = 0) -> torch.device:
    """The device for this process.

    Raises:
        ValueError: a GPU is asked for and none is there for this local rank.
    """
    if wish == "auto":
        wish = "cuda" if has_gpu() else "cpu"
    if wish == "cpu":
        if has_gpu():
            raise ValueError("parallel.device: cpu, but this machine has GPUs; hide them with CUDA_VISIBLE_DEVICES=")
        return torch.device("cpu")
    if not has_gpu():
        raise ValueError("parallel.device: cuda, but torch sees no GPU; use cpu or auto, or install torch for CUDA")
    if local_rank >= torch.cuda.device_count():
        raise ValueError(
            f"parallel.device: local rank {local_rank} has no GPU, this machine has {torch.cuda.device_count()}; "
            "start fewer processes per node"
        )
    return torch.device("cuda", local_rank)


def device_name(device: torch.device) -> str:
    """The GPU's name, or the processor's."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as lines:
            names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    except OSError:
        names = []
    return f"{names[0] if names else platform.processor() or 'CPU'} ({os.cpu_count()} cores)"


def peak_memory_bytes(device: torch.device) -> int:
    """Most memory that this process has held: allocated on the GPU, or resident on the host."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def ready_for_copy(tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
    """A host tensor in memory from which the device copies while the processor goes on: page-locked for a GPU."""
    return tensor.pin_memory() if device.type == "cuda" else tensor
