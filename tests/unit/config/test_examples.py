"""The configurations that are shipped: complete, known to the last key, and without contradictions."""

from __future__ import annotations

import dataclasses
import re

import pytest

from megatron_synE.config.model import PRESETS
from megatron_synE.config.parse import config_parser, parse_config, parse_job
from megatron_synE.config.synthesis import SynthesisConfig
from tests.helpers.commands import ROOT

EXAMPLES = ROOT / "examples"
ADDED = "llama3_8b/benchmarks.yaml"
SYNTHESIS_JOBS = [f"synthesis/{name}.yaml" for name in ("synthesis", "disciplines", "code", "topics")]


def slurm_processes() -> int:
    """Nodes times GPUs of the Slurm script."""
    script = (EXAMPLES / "llama3_8b" / "pretrain.slurm").read_text()
    return int(re.findall(r"#SBATCH --nodes=(\d+)", script)[0]) * int(re.findall(r"--gpus-per-node=(\d+)", script)[0])


@pytest.mark.parametrize(
    "name, world_size, base",
    [
        ("quickstart/backbone.yaml", 2, None),
        ("quickstart/quickstart.yaml", 2, "llama3_tiny"),
        ("synthesis/stage.yaml", 1, None),
        ("from_raw_text/run.yaml", 2, "llama3_tiny"),
        ("llama3_8b/stage1.yaml", slurm_processes(), "llama3_8b"),
        ("llama3_8b/stage2.yaml", slurm_processes(), "llama3_8b"),
    ],
)
def test_an_example_has_no_problems(name: str, world_size: int, base: str | None) -> None:
    job = parse_job(["--config", str(EXAMPLES / name)])
    assert job.problems(world_size, PRESETS[base] if base else None) == []


def test_every_example_is_tested() -> None:
    names = {str(path.relative_to(EXAMPLES)) for path in EXAMPLES.rglob("*.yaml")} - {*SYNTHESIS_JOBS, ADDED}
    (mark,) = test_an_example_has_no_problems.pytestmark  # type: ignore[attr-defined]
    assert names == {case[0] for case in mark.args[1]}


@pytest.mark.parametrize("stage", ["stage1", "stage2"])
def test_benchmarks_are_added_to_a_stage(stage: str) -> None:
    alone = ["--config", str(EXAMPLES / "llama3_8b" / f"{stage}.yaml")]
    job = parse_job([*alone, "--config", str(EXAMPLES / ADDED)])
    assert job.problems(slurm_processes(), PRESETS["llama3_8b"]) == []
    assert job.evaluation.benchmarks.is_due(500, 1000) and job.evaluation.benchmarks.is_due(0, 1000)
    assert dataclasses.replace(job, evaluation=parse_job(alone).evaluation) == parse_job(alone)


@pytest.mark.parametrize("name", SYNTHESIS_JOBS)
def test_a_synthesis_job_has_no_problems(name: str) -> None:
    arguments = ["--config", str(EXAMPLES / name)]
    assert parse_config(SynthesisConfig, arguments, config_parser(SynthesisConfig, "", "")).problems() == []


@pytest.mark.parametrize("stage", ["stage1", "stage2"])
def test_the_recipe_trains_as_the_paper_says(stage: str) -> None:
    """AdamW 0.9, 0.95, decay 0.1; clipping 1; bf16; context 8,192; 1e-7 → 1e-5 over 10 B tokens, then constant."""
    job = parse_job(["--config", str(EXAMPLES / "llama3_8b" / f"{stage}.yaml")])
    assert (job.optimizer.adam_beta1, job.optimizer.adam_beta2) == (0.9, 0.95)
    assert (job.optimizer.weight_decay, job.optimizer.clip_grad) == (0.1, 1.0)
    assert (job.schedule.init_lr, job.optimizer.lr, job.schedule.warmup_tokens) == (1e-7, 1e-5, 10_000_000_000)
    assert job.schedule.style == "wsd" and not job.schedule.decay_tokens and not job.schedule.decay_steps
    assert (job.precision.dtype, job.data.seq_length) == ("bf16", 8192)


def test_stage_two_goes_on_with_stage_one() -> None:
    one, two = (parse_job(["--config", str(EXAMPLES / "llama3_8b" / f"stage{n}.yaml")]) for n in (1, 2))
    assert one.checkpoint.save == two.checkpoint.save
    assert two.data.stages[:1] == one.data.stages
