"""Each redirection of runtime/cpu.py, seen where megatron-core uses it."""

from __future__ import annotations

import importlib
import logging
import os
import subprocess
import sys
import types
from pathlib import Path

import pytest
import torch

from megatron_synE.runtime import cpu
from tests.helpers import fake_packages
from tests.helpers.distributed import run_distributed

needs_no_gpu = pytest.mark.skipif(torch.cuda.is_available(), reason="the adapter is for machines without a GPU")


@pytest.fixture(scope="module", autouse=True)
def installed() -> None:
    if not torch.cuda.is_available():
        cpu.install()


@needs_no_gpu
def test_the_device_is_the_cpu() -> None:
    assert torch.zeros(2, device=torch.cuda.current_device()).device.type == "cpu"


@needs_no_gpu
def test_waiting_and_choosing_do_nothing() -> None:
    for call in (torch.cuda.synchronize, torch.cuda.empty_cache, torch.cuda.nvtx.range_pop):
        assert call() is None
    assert torch.cuda.set_device(0) is None
    assert torch.cuda.nvtx.range_push("x") is None


@needs_no_gpu
def test_streams_run_in_program_order() -> None:
    stream, event = torch.cuda.Stream(), torch.cuda.Event()
    with torch.cuda.stream(stream):
        event.record(stream)
    stream.wait_event(event)
    stream.wait_stream(torch.cuda.current_stream())
    torch.cuda.default_stream().synchronize()
    assert event.query()
    assert isinstance(stream.record_event(), cpu.CpuStream)


@needs_no_gpu
def test_moving_to_the_device_is_the_identity() -> None:
    tensor = torch.ones(3)
    assert tensor.cuda() is tensor


@needs_no_gpu
def test_the_generator_is_the_cpus() -> None:
    torch.cuda.manual_seed(7)
    state = torch.cuda.get_rng_state()
    first = torch.rand(3)
    torch.cuda.set_rng_state(state)
    assert torch.equal(torch.rand(3), first)


@needs_no_gpu
def test_forked_generators_leave_the_default_one_alone_and_say_nothing(caplog: pytest.LogCaptureFixture) -> None:
    from megatron.core.tensor_parallel.random import CudaRNGStatesTracker

    tracker = CudaRNGStatesTracker()
    tracker.add("one", 1)
    torch.manual_seed(5)
    expected = torch.rand(2)
    torch.manual_seed(5)
    with caplog.at_level(logging.WARNING), tracker.fork("one"):
        first = torch.rand(2)
    assert torch.equal(torch.rand(2), expected)
    with tracker.fork("one"):
        assert not torch.equal(torch.rand(2), first), "a fork goes on where it stopped"
    assert "CPU RNG" not in caplog.text


def test_only_that_warning_is_silenced(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        logging.getLogger("megatron.core.tensor_parallel.random").warning("something else")
    assert "something else" in caplog.text


def constants(code: types.CodeType) -> set[object]:
    found: set[object] = set()
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            found |= constants(constant)
        elif isinstance(constant, tuple):
            found |= set(constant)
        else:
            found.add(constant)
    return found


@needs_no_gpu
@pytest.mark.parametrize("name", cpu.LITERAL_MODULES)
def test_no_literal_names_the_gpu(name: str) -> None:
    functions = list(cpu.functions_of(importlib.import_module(name)))
    assert functions
    for function in functions:
        assert not constants(function.__code__) & set(cpu.LITERALS), function.__qualname__


@needs_no_gpu
def test_masks_are_made_on_the_cpu() -> None:
    from megatron.core.transformer import utils

    assert utils.get_default_causal_mask(3).device.type == "cpu"
    assert utils.get_sliding_window_causal_mask(3, 3, (1, 0)).device.type == "cpu"


def gathered_in_other_shapes() -> list[list[float]]:
    from megatron_synE.config.parallel import ParallelConfig
    from megatron_synE.runtime import initialize

    initialize(ParallelConfig(tensor_model_parallel_size=2))
    from megatron.core.tensor_parallel.mappings import dist_all_gather_func

    results = []
    mine = torch.arange(8.0).view(2, 4) + 8 * torch.distributed.get_rank()
    for gather in (torch.distributed.all_gather_into_tensor, dist_all_gather_func):
        for shape in ((16,), (4, 4), (2, 2, 4), (2, 8)):
            whole = torch.empty(shape)
            gather(whole, mine.t().contiguous().t(), group=torch.distributed.group.WORLD)
            results.append(whole.flatten().tolist())
    return results


@needs_no_gpu
def test_gathering_looks_at_sizes_as_nccl_does() -> None:
    expected = torch.arange(16.0).tolist()
    for results in run_distributed(gathered_in_other_shapes, 2):
        assert results == [expected] * 8


TRAIN_WITH_APEX = """
import warnings
warnings.simplefilter("ignore")
from megatron.core import optimizer
assert optimizer.Adam.__module__.startswith("apex"), "the fake is not found"
from megatron_synE.config.model import ModelConfig
from megatron_synE.config.parallel import ParallelConfig
from megatron_synE.config.precision import PrecisionConfig
from megatron_synE.kernels import FusedAdamW
from tests.helpers.training import SmallRun
run = SmallRun(
    ParallelConfig(), precision=PrecisionConfig(dtype="bf16"),
    model=ModelConfig(transformer_impl="fused", make_vocab_size_divisible_by=4),
)
print(run.step(0).loss, {type(part.optimizer) for part in run.optimizer.chained_optimizers} == {FusedAdamW})
"""


@needs_no_gpu
def test_training_takes_no_optimizer_that_needs_a_gpu(tmp_path: Path) -> None:
    """With Apex; tests/te has the same with Transformer Engine."""
    path = fake_packages.path_with(fake_packages.nvidia_apex(tmp_path))
    result = subprocess.run(
        [sys.executable, "-c", TRAIN_WITH_APEX], capture_output=True, text=True, cwd=Path(__file__).parents[3],
        env={**os.environ, "PYTHONPATH": path},
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    assert result.stdout.split()[-1] == "True", "ours is picked"


def test_literals_change_inside_nested_code_and_keep_the_function() -> None:
    def outer(x: str) -> tuple[bool, str]:
        def inner() -> str:
            return "old"

        return x in ("old", "b"), inner()

    module = types.ModuleType("sample")
    outer.__module__ = "sample"
    module.outer = outer  # type: ignore[attr-defined]
    cpu.replace_literals(module, {"old": "new"})
    assert module.outer is outer
    assert outer("new") == (True, "new")


def test_other_versions_are_refused() -> None:
    with pytest.raises(ValueError, match=r"megatron-core 0\.17\.0 .* install"):
        cpu._check_version("0.17.0")
    cpu._check_version("0.16.1")
    cpu._check_version("0.16.5")


@needs_no_gpu
def test_importing_the_package_patches_nothing() -> None:
    code = (
        "import torch; before = torch.Tensor.cuda; import megatron_synE.runtime; "
        "assert torch.Tensor.cuda is before; print('untouched')"
    )
    result = subprocess.run([sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True, check=True)
    assert "untouched" in result.stdout


def test_a_collective_is_left_out_only_where_the_result_is_there_already() -> None:
    calls: list[str] = []
    collective = cpu.unless_alone(lambda *args, **kwargs: calls.append("called"))
    tensor, alone, two = torch.ones(4), types.SimpleNamespace(size=lambda: 1), types.SimpleNamespace(size=lambda: 2)
    collective(tensor, tensor[:4], group=alone)
    assert not calls
    collective(tensor, tensor.clone(), group=alone)
    collective(tensor, tensor, group=two)
    assert len(calls) == 2
