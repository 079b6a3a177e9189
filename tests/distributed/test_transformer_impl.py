"""The fused layers train as the plain ones do: 50 steps, and at TP2 with sequence parallel, PP2 and CP2."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from megatron_synE.config.model import ModelConfig
from megatron_synE.config.parallel import ParallelConfig
from megatron_synE.config.precision import PrecisionConfig
from tests.distributed.test_parallel_layouts import make_checkpoint, relative
from tests.helpers.distributed import run_distributed
from tests.helpers.training import SmallRun, tensor_parallel_part

TOLERANCE = 1e-5
STEPS = 50
LAYOUTS = {
    "tp2_sp": ParallelConfig(tensor_model_parallel_size=2, sequence_parallel=True),
    "pp2": ParallelConfig(pipeline_model_parallel_size=2),
    "cp2": ParallelConfig(context_parallel_size=2),
    "dp2_overlap": ParallelConfig(overlap_param_gather=True),
}


def model_config(implementation: str, **fields: Any) -> ModelConfig:
    return ModelConfig(transformer_impl=implementation, make_vocab_size_divisible_by=4, **fields)


def round_again(run: SmallRun, seed: int) -> None:
    """Weights as another, random rounding to bf16 would leave them: less than one unit in the last place away."""
    generator = torch.Generator().manual_seed(seed)
    for chunk in run.chunks:
        for parameter in chunk.parameters():
            noise = 2 * torch.rand(parameter.shape, generator=generator).to(parameter.device) - 1
            parameter.data.copy_(parameter.data.float() * (1 + 2**-8 * noise))
    run.optimizer.reload_model_params()


def train(
    implementation: str,
    layouts: dict[str, ParallelConfig],
    checkpoint: str,
    isolate: bool,
    dtype: str,
    steps: int,
    rounding_seed: int | None = None,
) -> dict[str, Any]:
    """Per layout: the losses, and the first step's gradients of this process."""
    results = {}
    for name, parallel in layouts.items():
        run = SmallRun(
            parallel,
            checkpoint=checkpoint,
            isolate_documents=isolate,
            precision=PrecisionConfig(dtype=dtype),
            model=model_config(implementation),
        )
        if rounding_seed is not None:
            round_again(run, rounding_seed)
        gradients = run.gradients()
        losses = [run.step(step).loss for step in range(steps)]
        sizes = run.runtime.tensor_model_parallel_rank, parallel.tensor_model_parallel_size
        results[name] = {"losses": losses, "gradients": gradients, "tp": list(sizes)}
        run.close()
    return results


def reference_runs(checkpoint: str, steps: int) -> dict[str, Any]:
    """Plain and fused in one process, joined and isolated documents, fp32 and bf16."""
    alone = {"one": ParallelConfig()}
    results = {}
    for implementation in ("local", "fused"):
        for isolate in (False, True):
            name = f"{implementation} fp32 {isolate}"
            results[name] = train(implementation, alone, checkpoint, isolate, "fp32", steps)["one"]
        results[f"{implementation} bf16"] = train(implementation, alone, checkpoint, False, "bf16", steps)["one"]
    for seed in (1, 2):
        results[f"local bf16 seed {seed}"] = train("local", alone, checkpoint, False, "bf16", steps, seed)["one"]
    return results


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> str:
    root = str(tmp_path_factory.mktemp("whole_model"))
    run_distributed(make_checkpoint, 1, root)
    return root


@pytest.fixture(scope="module")
def single(checkpoint: str) -> dict[str, Any]:
    return run_distributed(reference_runs, 1, checkpoint, STEPS)[0]


def as_tensor(losses: list[float]) -> torch.Tensor:
    return torch.tensor(losses, dtype=torch.float64)


@pytest.mark.parametrize("isolate", [False, True], ids=["joined", "isolated"])
def test_fp32_loss_curve_and_gradients(single: dict[str, Any], isolate: bool) -> None:
    local, fused = single[f"local fp32 {isolate}"], single[f"fused fp32 {isolate}"]
    worst = ((as_tensor(fused["losses"]) / as_tensor(local["losses"])) - 1).abs().max()
    assert worst <= TOLERANCE, f"relative difference {worst:.2e} over {STEPS} steps"
    for name, gradient in fused["gradients"].items():
        assert relative(gradient, local["gradients"][name]) <= TOLERANCE, name


def spread_of_two_seeds(single: dict[str, Any]) -> float:
    one, other = (as_tensor(single[f"local bf16 seed {seed}"]["losses"]) for seed in (1, 2))
    return relative(one, other)


def test_bf16_is_within_the_spread_of_two_seeds_of_rounding(single: dict[str, Any]) -> None:
    """bf16 curves differ by rounding noise: ours and plain torch's by no more than two roundings of the weights."""
    ours, plain = (as_tensor(single[f"{name} bf16"]["losses"]) for name in ("fused", "local"))
    assert relative(ours, plain) <= spread_of_two_seeds(single), "fused against local"
    exact = as_tensor(single["local fp32 False"]["losses"])
    assert relative(ours, exact) <= 1.5 * relative(plain, exact) + 1e-4, "the error against fp32"


def test_bf16_of_two_processes_is_within_the_same_spread(checkpoint: str, single: dict[str, Any]) -> None:
    layouts = {name: LAYOUTS[name] for name in ("tp2_sp", "pp2", "cp2")}
    plain, spread = as_tensor(single["local bf16"]["losses"]), spread_of_two_seeds(single)
    for by_layout in run_distributed(train, 2, "fused", layouts, checkpoint, False, "bf16", STEPS):
        for name, result in by_layout.items():
            assert relative(as_tensor(result["losses"]), plain) <= spread, name


@pytest.mark.parametrize("isolate", [False, True], ids=["joined", "isolated"])
def test_two_processes(checkpoint: str, single: dict[str, Any], isolate: bool) -> None:
    steps = 10 if isolate else STEPS
    expected = single[f"local fp32 {isolate}"]
    for rank, by_layout in enumerate(run_distributed(train, 2, "fused", LAYOUTS, checkpoint, isolate, "fp32", steps)):
        for name, result in by_layout.items():
            worst = ((as_tensor(result["losses"]) / as_tensor(expected["losses"][:steps])) - 1).abs().max()
            assert worst <= TOLERANCE, f"{name}, process {rank}: relative difference {worst:.2e}"
            for parameter, gradient in result["gradients"].items():
                whole = expected["gradients"][parameter]
                rank_and_size = result["tp"]
                if "embedding" in parameter or "output" in parameter:
                    padded = torch.zeros(gradient.shape[0] * rank_and_size[1], whole.shape[1])
                    padded[: min(len(whole), len(padded))] = whole[: len(padded)]
                    whole = padded
                part = tensor_parallel_part(parameter, whole, *rank_and_size)
                assert relative(gradient, part) <= TOLERANCE, f"{name}, process {rank}: {parameter}"
