"""The roofline's arithmetic, against numbers computed by hand and against the formula that training logs."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import roofline
from roofline import Machine, Setting, step_ops, step_seconds, tokens_per_s

from megatron_synE.config.model import PRESETS, LlamaArchitecture
from megatron_synE.training.throughput import make_throughput

SMALL = LlamaArchitecture(3, 64, 160, 4, 2, 1000)
MACHINE = Machine("made up", bf16_flops=1e6, fp8_flops=2e6, bytes_per_second=1e5)


@pytest.mark.parametrize("architecture", [*PRESETS.values(), SMALL, replace(SMALL, kv_channels=24)])
@pytest.mark.parametrize("precision", ["bf16", "fp8"])
@pytest.mark.parametrize("recompute", ["none", "full"])
def test_model_flops_are_those_of_the_training_log(
    architecture: LlamaArchitecture, precision: str, recompute: str
) -> None:
    setting = Setting(architecture, 512, 2, 3, precision=precision, recompute=recompute)
    counted = sum(op.count * op.model_flops for op in step_ops(setting))
    logged = make_throughput(architecture, seq_length=512, world_size=1, peak_tflops=None, device_name="")
    assert counted == pytest.approx(3 * setting.tokens * logged.flops_per_token, rel=1e-12)


def test_full_recomputation_adds_the_layers_forward_products_and_nothing_else() -> None:
    plain, full = Setting(SMALL, 512), Setting(SMALL, 512, recompute="full")
    flops = [sum(op.count * op.flops for op in step_ops(setting)) for setting in (plain, full)]
    matrices = SMALL.num_matmul_parameters() - SMALL.hidden_size * SMALL.vocab_size
    attention = 2 * SMALL.num_layers * SMALL.num_attention_heads * SMALL.head_dim * 512
    assert flops[1] - flops[0] == 16 * 512 * (2 * matrices + attention)


def test_bytes_by_hand() -> None:
    by_name = {op.name: op for op in step_ops(Setting(SMALL, 100, 2, 5))}
    assert by_name["rms_norm"].bytes == 2 * 200 * 64 * 2 and by_name["rms_norm"].count == 15
    # 200 tokens, 64 channels to 4 + 2 * 2 heads of 16: activations in bf16, the main gradient read and written in fp32.
    assert by_name["qkv forward"].bytes == 2 * (200 * 64 + 200 * 128 + 64 * 128)
    assert by_name["qkv weight gradient"].bytes == 2 * (200 * 64 + 200 * 128) + 8 * 64 * 128
    assert by_name["swiglu_backward"].bytes == 5 * 200 * 160 * 2
    assert by_name["optimizer"].bytes == 30 * SMALL.num_parameters() and by_name["optimizer"].count == 1


def test_an_op_takes_the_longer_of_its_two_times() -> None:
    assert roofline.Op("products", 3, bytes=1e5, flops=4e6).seconds(MACHINE) == 12
    assert roofline.Op("products", 3, bytes=1e5, flops=4e6, fp8=True).seconds(MACHINE) == 6
    assert roofline.Op("memory", 3, bytes=5e5, flops=4e6).seconds(MACHINE) == 15


def test_a_step_is_the_sum_of_its_ops() -> None:
    setting = Setting(SMALL, 512, 2, 4)
    assert step_seconds(setting, MACHINE) == pytest.approx(sum(op.seconds(MACHINE) for op in step_ops(setting)))
    assert tokens_per_s(setting, MACHINE) == pytest.approx(4 * 2 * 512 / step_seconds(setting, MACHINE))


def test_fp8_halves_products_and_pays_for_quantising() -> None:
    free_memory = replace(MACHINE, bytes_per_second=1e30)
    setting = Setting(PRESETS["llama3_8b"])
    bf16, fp8 = (step_seconds(replace(setting, precision=name), free_memory) for name in ("bf16", "fp8"))
    assert fp8 < bf16 < 2 * fp8
    quantising = {op.name: op for op in step_ops(replace(setting, precision="fp8")) if " quantising of " in op.name}
    assert len(quantising) == 16 and not any(op.flops for op in quantising.values())
    weight = 14336 * 4096
    by_hand = {
        "input": 6 * 8192 * 14336, "gradient": 6 * 8192 * 4096, "weight": 5 * weight, "weight, backward": 3 * weight
    }  # fmt: skip
    assert {name: quantising[f"down quantising of {name}"].bytes for name in by_hand} == by_hand


def test_no_published_figure_is_beyond_the_roofline() -> None:
    for row in roofline.PUBLISHED:
        assert row.tokens_per_s < tokens_per_s(row.setting, row.machine), row.source


def test_measured_figures_stand_beside_it(tmp_path: Path) -> None:
    folder = tmp_path / "gpu-nvidia-h200"
    folder.mkdir()
    step = {
        "contender": "fused", "num_layers": 32, "seq_length": 4096, "micro_batch_size": 4, "num_microbatches": 2,
        "precision": "bf16", "recompute": "full", "documents": 1, "lean_optimizer": True, "tokens_per_s": 7000.0,
    }  # fmt: skip
    records = {
        "kernels": {"copy_gb_per_s": 4000, "rope_unpack 4096": {"hidden": 4096, "ms": 0.25}},
        "whole_8b": {"a": step, "b": {**step, "documents": 16}, "c": {"error": "OutOfMemoryError"}},
    }
    for stage, figures in records.items():
        (folder / f"{stage}.json").write_text(json.dumps({"stage": stage, "started": 0, "figures": figures}))
    command = [sys.executable, str(Path(roofline.__file__)), "--results", str(folder)]
    output = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
    (rope,) = (line for line in output if line.startswith("rope_unpack "))
    assert rope.split()[-1] == "128.00", "512 calls of 0.25 ms"
    (found,) = json.loads(output[-1])["measured"]
    assert found["tokens_per_s"] == 7000 and 0.4 < found["share"] < 0.6
