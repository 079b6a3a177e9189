"""Every parallel layout trains as one process does: losses of five steps and the first step's gradients, in fp32."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

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


def train(layouts: dict[str, ParallelConfig], checkpoint: str | None, isolate_documents: bool) -> dict[str, Any]:
    """Per layout: the losses, the grad norms and this process's gradients."""
    results = {}
    for name, parallel in layouts.items():
        run = SmallRun(parallel, checkpoint=checkpoint, isolate_documents=isolate_documents)
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


@pytest.fixture(scope="module", params=[False, True], ids=["joined", "isolated"])
def reference(request: pytest.FixtureRequest, checkpoint: str) -> tuple[bool, dict[str, Any]]:
    """One process's results."""
    return request.param, run_distributed(train, 1, {"one": ParallelConfig()}, checkpoint, request.param)[0]["one"]


def relative(value: torch.Tensor, expected: torch.Tensor) -> float:
    return float((value - expected).norm() / expected.norm())


def check(results: list[dict[str, Any]], reference: dict[str, Any]) -> None:
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


def test_two_processes(checkpoint: str, reference: tuple[bool, dict[str, Any]]) -> None:
    isolate_documents, expected = reference
    check(run_distributed(train, 2, LAYOUTS_OF_TWO, checkpoint, isolate_documents), expected)


def test_eight_processes(checkpoint: str, reference: tuple[bool, dict[str, Any]]) -> None:
    isolate_documents, expected = reference
    check(run_distributed(train, 8, LAYOUTS_OF_EIGHT, checkpoint, isolate_documents), expected)


def test_losses_fall(reference: tuple[bool, dict[str, Any]]) -> None:
    """The weights do move: a frozen model would pass the other tests."""
    _, expected = reference
    assert expected["losses"][-1] != pytest.approx(expected["losses"][0], rel=1e-3)
