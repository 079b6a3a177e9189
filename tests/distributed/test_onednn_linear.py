"""Linear layers with products by oneDNN: gradients and losses of the layouts against megatron-core's own layers."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from megatron_synE.config.parallel import ParallelConfig
from megatron_synE.kernels import override, product
from tests.helpers.distributed import run_distributed
from tests.helpers.training import SmallRun

STEPS = 4
TP2 = {"tensor_model_parallel_size": 2}
LAYOUTS: list[dict[str, Any]] = [{}, TP2, {**TP2, "sequence_parallel": True}]

pytestmark = pytest.mark.skipif(not hasattr(torch.ops.mkldnn, "_linear_pointwise"), reason="torch has no oneDNN")


Found = tuple[list[float], dict[str, torch.Tensor], str]


def curves(implementation: str, layouts: list[dict[str, Any]]) -> list[Found]:
    """Losses, first gradients and the linear layers' class, of each layout."""
    product.__globals__["FEWEST_MULTIPLICATIONS"] = 0
    found = []
    with override("product", implementation):  # type: ignore[arg-type]
        for layout in layouts:
            run = SmallRun(ParallelConfig(**layout))
            name = type(run.chunks[0].module.decoder.layers[0].mlp.linear_fc1).__name__
            gradients = run.gradients()
            found.append(([run.step(step).loss for step in range(STEPS)], gradients, name))
            run.close()
    return found


@pytest.mark.parametrize("num_processes", [1, 2])
def test_layers_learn_as_megatron_cores_do(num_processes: int) -> None:
    layouts = [fields for fields in LAYOUTS if fields.get("tensor_model_parallel_size", 1) == num_processes]
    ours = run_distributed(curves, num_processes, "compiled", layouts)
    theirs = run_distributed(curves, num_processes, "reference", layouts)
    for own, core in zip(ours, theirs, strict=True):
        for (losses, gradients, name), (expected, expected_gradients, core_name) in zip(own, core, strict=True):
            assert (name, core_name) == ("OneDnnColumnParallelLinear", "ColumnParallelLinear")
            assert losses == pytest.approx(expected, rel=1e-5)
            for key, value in expected_gradients.items():
                scale = float(value.abs().max())
                torch.testing.assert_close(gradients[key], value, rtol=0, atol=1e-5 * scale, msg=key)
