"""Every op that benchmarks/gpu_kernels.py measures runs, on the emulated GPU, and its name stands in the roofline."""

from __future__ import annotations

import pytest
import torch
from gpu_kernels import head_ops, layer_ops, optimizer_ops
from roofline import Setting, step_ops

from megatron_synE.config.model import PRESETS
from tests.kernels.host_cuda import why_not
from tests.kernels.host_cuda.gpu import emulated_gpu


@pytest.mark.skipif(why_not() is not None, reason=str(why_not()))
def test_every_op_runs_on_an_emulated_gpu() -> None:
    with emulated_gpu():
        device = torch.device("cuda", 0)
        ops = {**layer_ops(3, 512, device), **head_ops(2, 1000, device), **optimizer_ops(100, device)}
        for name, (op, num_bytes) in ops.items():
            op()
            assert num_bytes > 0, name


def test_ops_of_a_layer_are_those_of_the_roofline() -> None:
    roofline = {op.name: op.bytes for op in step_ops(Setting(PRESETS["llama3_8b"], 16))}
    ops = layer_ops(16, 4096, torch.device("cpu"))
    assert {name: num_bytes for name, (_, num_bytes) in ops.items()} == {name: roofline[name] for name in ops}
