"""With NVIDIA's Transformer Engine itself, as far as a machine without a GPU allows (`make test-te` installs it).

Its layers are built, saved and loaded; the command lines run where it is installed and cannot be used.
"""

from __future__ import annotations

import dataclasses
import importlib.util
import sys
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch

from megatron_synE.config.model import ModelConfig
from megatron_synE.config.optimizer import OptimizerConfig
from megatron_synE.config.parallel import ParallelConfig
from megatron_synE.config.precision import PrecisionConfig
from megatron_synE.runtime.transformer_engine import ACCEPTED_VERSIONS
from tests.helpers import small_job
from tests.helpers.checkpoint import MODEL, TINY, build_training, differing_tensors, local_state, update
from tests.helpers.commands import ROOT, pretrain, run, run_tool, succeeded
from tests.helpers.distributed import run_distributed
from tests.helpers.training import SmallRun
from tests.te import stub

pytestmark = [
    pytest.mark.skipif(
        importlib.util.find_spec("transformer_engine") is None,
        reason="Transformer Engine is not installed; `make test-te` runs this in an environment that has it",
    ),
    pytest.mark.skipif(torch.cuda.is_available(), reason="about machines without a GPU"),
]

IMPLEMENTATIONS = ("local", "transformer_engine", "fused")
LAYOUTS = {
    "tp1": ParallelConfig(),
    "tp2_sp": ParallelConfig(tensor_model_parallel_size=2, sequence_parallel=True),
    "pp2": ParallelConfig(pipeline_model_parallel_size=2),
}


def model_of(implementation: str) -> ModelConfig:
    return dataclasses.replace(MODEL, transformer_impl=implementation)  # type: ignore[arg-type]


def sharded_keys(chunks: list[Any]) -> list[str]:
    """Of each tensor that this process saves: its key, type, whole shape, and place in the whole."""
    from megatron.core.dist_checkpointing.dict_utils import nested_values
    from megatron.core.dist_checkpointing.mapping import apply_factories

    from megatron_synE.checkpoint.model_state import model_state

    state = model_state(chunks)
    apply_factories(state)  # gate and up, which are one parameter
    tensors = [(t.key, t.dtype, t.global_shape, t.global_offset, t.axis_fragmentations) for t in nested_values(state)]
    return sorted(map(repr, tensors))


def move(folder: str, layouts: list[ParallelConfig]) -> list[list[str]]:
    """Train and save local layers, load them into Transformer Engine's, save those, load them into fused ones, save.

    Each of these in the next of `layouts`. Returns the sharded keys of each.
    """
    stub.install()
    warnings.simplefilter("ignore")
    from megatron.core.models.gpt import gpt_layer_specs

    from megatron_synE.checkpoint import load_checkpoint, save_checkpoint

    assert gpt_layer_specs.HAVE_TE
    keys = []
    for number, (implementation, parallel) in enumerate(zip(IMPLEMENTATIONS, layouts, strict=True)):
        chunks, optimizer = build_training(parallel, "bf16", model=model_of(implementation))
        update(chunks, optimizer, num_steps=2 + number)  # other values than those that a load brings
        if number:
            source = Path(folder) / IMPLEMENTATIONS[number - 1]
            before = local_state(chunks, optimizer)
            load_checkpoint(source, architecture=TINY, model_chunks=chunks, optimizer=optimizer)
            after = local_state(chunks, optimizer)
            assert any(not torch.equal(before[name], after[name]) for name in before)
        save_checkpoint(
            Path(folder) / implementation, step=1, architecture=TINY, model_chunks=chunks, optimizer=optimizer,
            rng_state=None, state={},
        )  # fmt: skip
        keys.append(sharded_keys(chunks))
    return keys


def assert_equal_files(folder: Path) -> None:
    for implementation in IMPLEMENTATIONS[1:]:
        assert differing_tensors(folder / "local", folder / implementation, ignore=()) == []


@pytest.mark.parametrize("layout", list(LAYOUTS))
def test_checkpoints_move_between_implementations_bit_for_bit(tmp_path: Path, layout: str) -> None:
    parallel = LAYOUTS[layout]
    for local, transformer_engine, fused in run_distributed(
        move, parallel.model_parallel_size, str(tmp_path), [parallel] * 3
    ):
        assert len(local) >= 14
        assert local == transformer_engine == fused
    assert_equal_files(tmp_path)


def test_checkpoints_move_between_implementations_and_layouts_at_once(tmp_path: Path) -> None:
    run_distributed(move, 2, str(tmp_path), [LAYOUTS["tp2_sp"], LAYOUTS["pp2"], LAYOUTS["tp1"]])
    assert_equal_files(tmp_path)


def train_beside_transformer_engine(implementation: str, precision_aware: bool) -> dict[str, Any]:
    stub.install()
    warnings.simplefilter("ignore")
    from megatron.core import optimizer

    found = optimizer.Adam.__module__
    run = SmallRun(
        ParallelConfig(), precision=PrecisionConfig(dtype="bf16"),
        model=ModelConfig(transformer_impl=implementation, make_vocab_size_divisible_by=4),  # type: ignore[arg-type]
        optimizer=OptimizerConfig(lr=1e-3, use_precision_aware_optimizer=precision_aware),
    )  # fmt: skip
    losses = [run.step(step).loss for step in range(3)]
    used = [type(part.optimizer).__name__ for part in run.optimizer.chained_optimizers]
    return {"found": found, "used": used, "losses": losses}


@pytest.mark.parametrize(
    "implementation, precision_aware, ours",
    [("local", False, "FusedAdamW"), ("fused", False, "FusedAdamW"), ("fused", True, "PrecisionAwareAdamW")],
)
def test_training_takes_our_optimizer_where_megatron_core_has_found_theirs(
    implementation: str, precision_aware: bool, ours: str
) -> None:
    (result,) = run_distributed(train_beside_transformer_engine, 1, implementation, precision_aware)
    assert result["found"].startswith("transformer_engine")
    assert result["used"] == [ours]
    assert all(0 < loss < 10 for loss in result["losses"])


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    small_job.write_job(tmp_path / "job", measured=False, training={"train_steps": 2})
    return tmp_path / "job"


def test_the_trainer_runs_where_it_is_installed(folder: Path) -> None:
    result = succeeded(pretrain(1, "--config", small_job.JOB_FILE, cwd=folder))
    assert "Transformer Engine" not in result.stderr
    succeeded(run_tool("verify_checkpoint", "--checkpoint", folder / small_job.RUN))
    assert "needs an NVIDIA GPU" in succeeded(run_tool("doctor")).stdout


# As on a machine with a GPU, or with another version of the package.
PRETEND = f"""
import importlib.metadata, sys
import torch
if sys.argv[1] == "gpu":
    torch.cuda.is_available, torch.cuda.device_count = lambda: True, lambda: 1
if sys.argv[1] == "out of range":
    version = importlib.metadata.version
    importlib.metadata.version = lambda name: "2.12.0" if name == "transformer-engine" else version(name)
sys.path.insert(0, {str(ROOT)!r})
from pretrain_llama3_synE import main
raise SystemExit(main(sys.argv[2:]))
"""


@pytest.mark.parametrize(
    "machine, message",
    [
        ("gpu", "is installed, but cannot be imported (FileNotFoundError: Could not find shared object file"),
        ("no gpu", "needs an NVIDIA GPU, and torch sees none"),
        ("out of range", f"2.12.0 is installed, but megatron-core takes {ACCEPTED_VERSIONS}; run `pip install"),
    ],
)
def test_asked_for_where_it_cannot_run_it_is_one_clear_error(folder: Path, machine: str, message: str) -> None:
    if machine == "gpu" and importlib.util.find_spec("transformer_engine_torch") is not None:
        pytest.skip("its compiled extension is installed")
    asked = ("--config", small_job.JOB_FILE, "--model.transformer_impl", "transformer_engine")
    result = run(sys.executable, "-c", PRETEND, machine, *asked, cwd=folder)
    assert result.returncode == 1
    (told,) = [line for line in result.stderr.splitlines() if "model.transformer_impl" in line]
    assert message in told and told.endswith("or use model.transformer_impl fused")
    assert "Traceback" not in result.stderr
