"""The stages of `make gpu`, in the order in which they are worth the time of a rented card."""

from __future__ import annotations

import sys

from gpu.runner import Stage

ONE_PROCESS_TESTS = (
    "tests/distributed/test_nccl.py",
    "tests/distributed/test_host_waits.py::test_a_step_on_a_gpu_waits_once_by_the_word_of_cuda",
    "tests/distributed/test_transformer_impl.py::test_fp32_loss_curve_and_gradients",
    "tests/distributed/test_transformer_impl.py::test_bf16_is_within_the_spread_of_two_seeds_of_rounding",
    "tests/distributed/test_resumed_runs.py::test_every_interruption_leaves_the_records_of_an_uninterrupted_run",
)
"""What needs one process only, and takes the GPU with nccl where there is one."""


def gpu_stages() -> list[Stage]:
    """All of it, on the GPU of this machine."""
    return _stages(["--device", "cuda"], "cuda or gpu", ONE_PROCESS_TESTS)


def rehearsal_stages() -> list[Stage]:
    """The same commands on a CPU, at sizes of no meaning: no mistake of ours is met on rented time."""
    return _stages(["--device", "cpu", "--tiny"], "cpu and swiglu", ONE_PROCESS_TESTS[:3])


def _stages(where: list[str], kernel_tests: str, nccl_tests: tuple[str, ...]) -> list[Stage]:
    def script(name: str, *arguments: str) -> tuple[str, ...]:
        return (sys.executable, f"benchmarks/{name}", *arguments)

    # The emulation of CUDA on the host needs no card.
    selected = ("tests/kernels", "-k", kernel_tests, "--ignore-glob=*host_cuda*")
    return [
        Stage("build", script("gpu/build.py", *where[:2]), 240),
        Stage("doctor", (sys.executable, "tools/doctor.py"), 60),
        Stage("kernel_tests", script("gpu/run_tests.py", *selected), 240),
        Stage("nccl_tests", script("gpu/run_tests.py", *nccl_tests), 240),
        Stage("kernels", script("gpu_kernels.py", *where), 120),
        Stage("step", script("gpu_step.py", "--suite", "layers", *where), 240),
        Stage("whole_8b", script("gpu_step.py", "--suite", "whole", *where), 240),
        Stage("run", script("gpu_run.py", *where), 240),
        Stage("te", script("gpu_step.py", "--suite", "te", *where), 180),
    ]
