"""What a job asks of the machine that it starts on."""

from __future__ import annotations

import importlib.util
import os

from megatron_synE.config.job import JobConfig
from megatron_synE.kernels._native import extension
from megatron_synE.kernels.fp8 import scaled_product_problem
from megatron_synE.runtime.device import choose_device
from megatron_synE.runtime.transformer_engine import fp8_problem, transformer_engine_problem


def machine_problems(job: JobConfig) -> list[str]:
    """What the job asks for and this machine lacks, one line each with the fix. Needs no megatron-core."""
    found = []
    try:
        device = choose_device(job.parallel.device, int(os.environ.get("LOCAL_RANK", "0")))
    except ValueError as error:
        found.append(str(error))
    else:
        if job.model.transformer_impl == "fused" and job.precision.fp8 != "none":
            problem = scaled_product_problem(device)
            found += [] if problem is None else [f"precision.fp8: {problem}; use precision.fp8 none"]
    if job.model.transformer_impl == "transformer_engine":
        problem = transformer_engine_problem()
        if problem is not None:
            found.append(f"model.transformer_impl: {problem}; or use model.transformer_impl fused")
        elif job.precision.fp8 != "none" and (problem := fp8_problem()) is not None:
            found.append(f"precision.fp8: {problem}; use precision.fp8 none")
    if job.logging.wandb.project is not None and importlib.util.find_spec("wandb") is None:
        found.append("logging.wandb.project: wandb is not installed; pip install 'megatron-syne[wandb]', or use null")
    return found


def machine_notes(job: JobConfig) -> list[str]:
    """What the job asks for and this machine does in another, slower way."""
    try:
        device = choose_device(job.parallel.device, int(os.environ.get("LOCAL_RANK", "0")))
    except ValueError:
        return []  # a problem
    if job.model.transformer_impl != "fused" or extension(device.type) is not None:
        return []
    return [
        f"model.transformer_impl: fused, but the kernels for {device.type} were not built: plain torch runs in their "
        "place, slower; install again where there is a compiler"
    ]
