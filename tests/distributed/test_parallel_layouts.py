"""Every parallel layout trains as one process does: losses of five steps and the first step's gradients, in fp32."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

from megatron_synE.config.model import ModelConfig
from megatron_synE.config.parallel import ParallelConfig
from tests.helpers.distributed import run_distributed
from tests.helpers.training import ARCHITECTURE, SmallRun, tensor_parallel_part

TOLERANCE = 1e-5
STEPS = 5

LAYOUTS_OF_TWO = {
    "tp2": ParallelConfig(tensor_model_parallel_size=2),
    "tp2_sp": ParallelConfig(tensor_model_parallel_size=2, sequence_parallel=True),
    "pp2": ParallelConfig(pipeline_model_parallel_size=2),
    "pp2_vpp2": ParallelConfig(pipeline_model_parallel_size=2, virtual_pipeline_model_parallel_size=2),
    "dp2": ParallelConfig(use_distributed_optimizer=False, overlap_grad_reduce=False),
    "dp2_overlap": ParallelConfig(use_distributed_optimizer=False),
    "dp2_distopt": ParallelConfig(overlap_param_gather=True),
}
LAYOUTS_OF_EIGHT = {
    "tp2_pp2_dp2": ParallelConfig(tensor_model_parallel_size=2, pipeline_model_parallel_size=2),
    "tp2_sp_pp2_vpp2_dp2_plain": ParallelConfig(
        tensor_model_parallel_size=2, pipeline_model_parallel_size=2, virtual_pipeline_model_parallel_size=2,
        sequence_parallel=True, use_distributed_optimizer=False,
    ),
}  # fmt: skip


@dataclass(frozen=True)
class Case:
    """What is trained in every layout."""

    impl: str
    isolate_documents: bool


CASES = [Case("local", False), Case("fused", True)]


def train_cases(layouts: dict[str, ParallelConfig], checkpoint: str) -> dict[str, Any]:
    """All cases in the same processes: starting eight of them costs more than what they compute."""
    return {case.impl: train(layouts, checkpoint, case) for case in CASES}


def train(layouts: dict[str, ParallelConfig], checkpoint: str, case: Case) -> dict[str, Any]:
    """Per layout: the losses, the grad norms and this process's gradients."""
    model = ModelConfig(make_vocab_size_divisible_by=4, transformer_impl=case.impl)  # type: ignore[arg-type]
    results = {}
    for name, parallel in layouts.items():
        run = SmallRun(parallel, checkpoint=checkpoint, isolate_documents=case.isolate_documents, model=model)
        gradients = run.gradients()
        steps = [run.step(step) for step in range(STEPS)]
        results[name] = {
            "losses": [step.loss for step in steps],
            "component_losses": [list(step.component_losses) for step in steps],
            "grad_norms": [step.grad_norm for step in steps],
            "gradients": gradients,
            "tp_rank": run.runtime.tensor_model_parallel_rank,
            "tp_size": parallel.tensor_model_parallel_size,
        }
        run.close()
    return results


def make_checkpoint(root: str) -> None:
    """Random weights of the whole model, the norms' too."""
    from megatron_synE.checkpoint import save_checkpoint

    run = SmallRun(ParallelConfig())
    generator = torch.Generator().manual_seed(0)
    for parameter in run.chunks[0].parameters():
        noise = torch.randn(parameter.shape, generator=generator) * 0.05
        parameter.data.copy_(noise + 1 if parameter.dim() == 1 else noise)
    save_checkpoint(
        root, step=0, architecture=ARCHITECTURE, model_chunks=run.chunks, optimizer=None, rng_state=None, state={}
    )


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> str:
    root = str(tmp_path_factory.mktemp("whole_model"))
    run_distributed(make_checkpoint, 1, root)
    assert (Path(root) / "latest").is_file()
    return root


@pytest.fixture(scope="module")
def one_process(checkpoint: str) -> dict[str, Any]:
    """Per implementation, one process's results: plain torch on joined documents, fused layers on isolated ones."""
    results = run_distributed(train_cases, 1, {"one": ParallelConfig()}, checkpoint)[0]
    return {impl: by_layout["one"] for impl, by_layout in results.items()}


def relative(value: torch.Tensor, expected: torch.Tensor) -> float:
    return float((value - expected).norm() / expected.norm())


def check(results: list[dict[str, Any]], reference: dict[str, Any]) -> None:
    """Every process in every layout against the one process, whose implementation is the same."""
    for rank, by_layout in enumerate(results):
        for name, result in by_layout.items():
            where = f"{name}, process {rank}"
            losses = torch.tensor(result["losses"], dtype=torch.float64)
            expected = torch.tensor(reference["losses"], dtype=torch.float64)
            assert relative(losses, expected) <= TOLERANCE, f"{where}: {losses.tolist()} != {expected.tolist()}"
            norms = torch.tensor(result["grad_norms"]), torch.tensor(reference["grad_norms"])
            assert relative(*norms) <= TOLERANCE, f"{where}: gradient norms {norms}"
            by_component = torch.tensor(result["component_losses"]), torch.tensor(reference["component_losses"])
            assert relative(*by_component) <= TOLERANCE, where
            assert result["gradients"], where
            for parameter, gradient in result["gradients"].items():
                part = whole = reference["gradients"][parameter]
                rows = ARCHITECTURE.vocab_size if "embedding" in parameter or "output" in parameter else None
                if rows is not None:
                    padded = torch.zeros(gradient.shape[0] * result["tp_size"], whole.shape[1])
                    padded[:rows] = whole[:rows]
                    whole = padded
                part = tensor_parallel_part(parameter, whole, result["tp_rank"], result["tp_size"])
                assert relative(gradient, part) <= TOLERANCE, f"{where}: {parameter} {relative(gradient, part)}"


@pytest.mark.slow
@pytest.mark.parametrize(("world_size", "layouts"), [(2, LAYOUTS_OF_TWO), (8, LAYOUTS_OF_EIGHT)])
def test_layouts(world_size: int, layouts: dict[str, ParallelConfig], checkpoint: str, one_process: Any) -> None:
    results = run_distributed(train_cases, world_size, layouts, checkpoint)
    for case in CASES:
        check([result[case.impl] for result in results], one_process[case.impl])


def test_losses_change(one_process: dict[str, Any]) -> None:
    """The weights do move: a frozen model would pass the other tests."""
    for result in one_process.values():
        assert result["losses"][-1] != pytest.approx(result["losses"][0], rel=1e-3)
