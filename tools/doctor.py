"""What this machine can run: devices, kernels, libraries, and which implementation each op resolves to and why.

    doctor.py                    the report
    doctor.py --config FILE      also: is everything there that this job asks for? (`--section.field value` overrides)

Exit status 1 when something that the job asks for is missing. `pretrain_llama3_synE.py --dry_run` makes the
same checks, for a number of processes, and tells the plan.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import platform
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

import torch

from megatron_synE.command_line import ToolParser, run_tool
from megatron_synE.config.job import JobConfig
from megatron_synE.config.parse import parse_job
from megatron_synE.kernels import choice
from megatron_synE.kernels._native import extension
from megatron_synE.kernels.selection import OPS
from megatron_synE.runtime.device import has_gpu
from megatron_synE.runtime.software import version
from megatron_synE.runtime.transformer_engine import transformer_engine_problem, transformer_engine_version
from megatron_synE.training.checks import examine_job

LIBRARIES = ("torch", "megatron-core", "transformers", "numpy", "gigatoken")


def transformer_engine() -> str:
    """Whether layers of Transformer Engine can run here."""
    return transformer_engine_problem() or f"Transformer Engine {transformer_engine_version()}, usable"


def apex() -> str:
    """NVIDIA's Apex, told from the unrelated package of that name on the package index, which fails when imported."""
    spec = importlib.util.find_spec("apex")
    if spec is None:
        return "not installed (ours is used)"
    if not any((Path(folder) / "optimizers").is_dir() for folder in spec.submodule_search_locations or ()):
        return "NOT NVIDIA's: another package called apex is installed; uninstall it"
    extensions = ("amp_C", "fused_weight_gradient_mlp_cuda")
    missing = [name for name in extensions if importlib.util.find_spec(name) is None]
    return f"NVIDIA's, without {', '.join(missing)}" if missing else "NVIDIA's"


def no_gpu() -> str:
    """Why torch sees no GPU."""
    if torch.version.cuda is None:
        return "torch is built without CUDA"
    return f"torch, built for CUDA {torch.version.cuda}, finds no GPU or no NVIDIA driver that is new enough"


def device_lines() -> list[str]:
    lines = [f"{platform.machine()}, {os.cpu_count()} cores, torch uses {torch.get_num_threads()} threads"]
    if has_gpu():
        for index in range(torch.cuda.device_count()):
            properties = torch.cuda.get_device_properties(index)
            generation, memory_gib = f"sm_{properties.major}{properties.minor}", properties.total_memory / 2**30
            lines.append(f"GPU {index}: {properties.name}, {generation}, {memory_gib:.0f} GiB")
        lines.append(f"NCCL {'.'.join(map(str, torch.cuda.nccl.version()))}")
    else:
        lines.append(f"no GPU ({no_gpu()}): training runs on the processor with gloo")
    return lines


def kernel_lines() -> list[str]:
    lines = []
    cpu, cuda = extension("cpu"), extension("cuda")
    if cpu is None:
        lines.append("host kernels: not built (a C++17 compiler was missing or failed)")
    else:
        threads = "OpenMP" if cpu.has_openmp() else "one thread, built without OpenMP"
        lines.append(f"host kernels: built, {cpu.instruction_set()}, {threads}")
    built = "not built (nvcc was missing or failed)" if cuda is None else f"built with CUDA {cuda.cuda_version // 1000}"
    lines.append(f"CUDA kernels: {built}; nvcc {shutil.which('nvcc') or 'not on the path'}")
    index = importlib.util.find_spec("megatron_synE._index") is not None
    lines.append(f"data indices: {'built' if index else 'not built, numpy is used'}")
    return lines


def op_lines() -> list[str]:
    devices = ["cpu"] + (["cuda"] if has_gpu() else [])
    picked = [(op, device, choice(op, device)) for device in devices for op in OPS]
    return [f"{op:22s} {device:5s} {made.implementation:10s} {made.reason}" for op, device, made in picked]


def about(job: JobConfig) -> tuple[list[str], list[str]]:
    """Why a run of the job would not start on this machine, and what else is to be known of it. Writes nothing."""
    world_size = max(1, job.parallel.model_parallel_size)
    found = examine_job(job, world_size, keep_indices=False, render_benchmarks=True)
    return found.lacking + found.problems, found.notes


def parse_arguments(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line; what is left over (`--section.field value`) overrides the config."""
    parser = ToolParser(__doc__)
    parser.add_argument("--config", help="YAML file of a job")
    arguments, overrides = parser.parse_known_args(argv)
    if overrides and arguments.config is None:
        parser.error(f"unrecognized arguments: {' '.join(overrides)} (overrides need --config)")
    arguments.overrides = overrides
    return arguments


def main(argv: Sequence[str] | None = None) -> int:
    """Print the report; 1 where a run of the job would not start."""
    return run_tool("doctor", lambda: run(parse_arguments(argv)))


def run(arguments: argparse.Namespace) -> int:
    """Print the report."""
    print(f"python {platform.python_version()}")
    print("\n".join(f"{name} {version(name) or 'not installed'}" for name in LIBRARIES))
    print(transformer_engine())
    print(f"Apex: {apex()}")
    for title, lines in (("device", device_lines()), ("kernels", kernel_lines()), ("ops", op_lines())):
        print("\n".join(["", title, *(f"  {line}" for line in lines)]))
    if arguments.config is None:
        return 0
    notes: list[str] = []
    try:
        problems, notes = about(parse_job(["--config", arguments.config, *arguments.overrides]))
    except ValueError as error:
        problems = str(error).splitlines()
    told = [f"  {line}" for line in [*problems, *(f"note: {note}" for note in notes)]]
    verdict = "a run would not start" if problems else "everything is there"
    print("\n".join(["", f"{arguments.config}: {verdict}", *told]))
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
