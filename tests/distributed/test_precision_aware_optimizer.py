"""The precision-aware optimizer inside megatron-core: the same training in less memory, and the same checkpoints."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from megatron_synE.checkpoint.distributed_optimizer import MAIN_PARAM_PREFIX
from megatron_synE.checkpoint.whole_tensors import WholeTensors
from megatron_synE.config.model import ModelConfig
from megatron_synE.config.optimizer import OptimizerConfig
from megatron_synE.config.parallel import ParallelConfig
from megatron_synE.config.precision import PrecisionConfig
from megatron_synE.kernels.reference import split_fp32
from tests.helpers.checkpoint import OPTIMIZER, TINY, build_training, differing_tensors, local_state, update
from tests.helpers.distributed import run_distributed
from tests.helpers.training import SmallRun

DP = ParallelConfig()
DP_OVERLAP = ParallelConfig(overlap_param_gather=True)
TP2 = ParallelConfig(tensor_model_parallel_size=2)
PLAIN = ParallelConfig(use_distributed_optimizer=False, overlap_grad_reduce=False)
FP32_MOMENTS = replace(OPTIMIZER, use_precision_aware_optimizer=True)
BF16_MOMENTS = replace(FP32_MOMENTS, exp_avg_dtype="bf16", exp_avg_sq_dtype="bf16")
FP32_MAIN = replace(FP32_MOMENTS, store_param_remainders=False)
MIXED = replace(FP32_MAIN, exp_avg_dtype="bf16")


def _save(folder: Path, chunks: list[Any], optimizer: Any) -> None:
    from megatron_synE.checkpoint import save_checkpoint

    save_checkpoint(folder, step=1, architecture=TINY, model_chunks=chunks, optimizer=optimizer, rng_state=None,
                    state={})  # fmt: skip


def _load(folder: Path, chunks: list[Any], optimizer: Any, weights_only: bool = False) -> None:
    from megatron_synE.checkpoint import load_checkpoint

    load_checkpoint(folder, architecture=TINY, model_chunks=chunks, optimizer=optimizer, weights_only=weights_only)


def _train_on_given_gradients(folder: str, optimizers: dict[str, OptimizerConfig]) -> list[list[str]]:
    """Five clipped updates with gradients that depend on nothing, and a checkpoint; how the state is stored."""
    found = []
    for name, config in optimizers.items():
        chunks, optimizer = build_training(DP, "bf16", optimizer=config)
        generator = torch.Generator().manual_seed(11)
        for _ in range(5):
            for chunk in chunks:
                for parameter in chunk.parameters():
                    parameter.main_grad.copy_(torch.randn(parameter.shape, generator=generator))
            optimizer.step()
            optimizer.zero_grad()
        _save(Path(folder) / name, chunks, optimizer)
        for part in optimizer.chained_optimizers:
            stored = {f"{key} {t.dtype}" for state in part.optimizer.state.values() for key, t in state.items()}
            found.append(sorted(stored))
    return found


def test_state_equals_the_distributed_optimizers_bit_for_bit(tmp_path: Path) -> None:
    optimizers = {"ordinary": OPTIMIZER, "remainders": FP32_MOMENTS, "fp32_main": FP32_MAIN, "bf16": BF16_MOMENTS}
    for _, *stored in run_distributed(_train_on_given_gradients, 2, str(tmp_path), optimizers):
        moments = ["exp_avg torch.float32", "exp_avg_sq torch.float32"]
        assert stored[0] == [*moments, "master_param torch.int16"]
        assert stored[1] == [*moments, "master_param torch.float32"]
        assert stored[2] == ["exp_avg torch.bfloat16", "exp_avg_sq torch.bfloat16", "master_param torch.int16"]
    assert differing_tensors(tmp_path / "ordinary", tmp_path / "fp32_main") == []
    # Only weights may differ, where a main value lies between two bf16.
    differing = differing_tensors(tmp_path / "ordinary", tmp_path / "remainders")
    assert not any(name.startswith("optimizer.") for name in differing)
    for name in ("remainders", "bf16"):
        _weights_are_the_upper_halves(tmp_path / name)


def _weights_are_the_upper_halves(checkpoint: Path) -> None:
    tensors = WholeTensors(checkpoint)
    for name in tensors:
        if name.startswith(MAIN_PARAM_PREFIX):
            weight = tensors.read(name.removeprefix(MAIN_PARAM_PREFIX))
            assert torch.equal(weight, split_fp32(tensors.read(name))[0]), name


def _losses(optimizers: list[OptimizerConfig], fp32_gradients: list[bool], steps: int) -> list[list[float]]:
    curves = []
    model = ModelConfig(make_vocab_size_divisible_by=4, transformer_impl="fused")
    for config, in_fp32 in zip(optimizers, fp32_gradients, strict=True):
        precision = PrecisionConfig(grad_reduce_in_fp32=in_fp32)
        run = SmallRun(DP_OVERLAP, precision=precision, model=model, optimizer=config)
        curves.append([run.step(step % 2).loss for step in range(steps)])
        run.close()
    return curves


def _differing_replicas(chunks: list[Any]) -> list[str]:
    """Names of weights that are not those of the first data-parallel process."""
    from megatron.core import parallel_state

    group = parallel_state.get_data_parallel_group()
    found = []
    for chunk in chunks:
        for name, parameter in chunk.named_parameters():
            other = parameter.detach().clone()
            torch.distributed.broadcast(other, group=group, group_src=0)
            if not torch.equal(other, parameter):
                found.append(name)
    return found


@pytest.mark.slow
def test_bf16_moments_train_as_fp32_moments_do() -> None:
    # Without clipping: gradients that are clipped in bf16 are rounded once more.
    optimizers = [replace(config, lr=1e-3, clip_grad=0.0) for config in (OPTIMIZER, FP32_MOMENTS, BF16_MOMENTS)]
    results = run_distributed(_losses, 2, [*optimizers, optimizers[2]], [True, True, True, False], 30)
    ordinary, fp32_moments, bf16_moments, all_bf16 = (torch.tensor(curve) for curve in results[0])
    assert ordinary[-1] < 0.8 * ordinary[0]
    torch.testing.assert_close(fp32_moments, ordinary, rtol=2e-3, atol=0)
    torch.testing.assert_close(bf16_moments, ordinary, rtol=5e-3, atol=0)
    torch.testing.assert_close(all_bf16, ordinary, rtol=5e-3, atol=0)


def _clipped(optimizers: list[OptimizerConfig]) -> list[list[float]]:
    """Gradient norm of the second of two clipped steps, and the length of the first update."""
    results = []
    for config in optimizers:
        run = SmallRun(DP, precision=PrecisionConfig(), optimizer=config)
        norm = run.step(0).grad_norm
        moment = [state["exp_avg"].float().norm() for state in run.optimizer.optimizer.state.values()]
        results.append([norm, float(torch.stack(moment).norm())])
        run.close()
    return results


def test_gradients_are_clipped() -> None:
    """Rank by rank the first moment after one step is (1 - β1) times the clipped gradient."""
    configs = [replace(config, clip_grad=1e-3) for config in (OPTIMIZER, FP32_MOMENTS)]
    for (norm, moment), (other_norm, other_moment) in run_distributed(_clipped, 2, configs):
        assert norm == other_norm > 1e-2
        assert other_moment == pytest.approx(moment, rel=1e-6)


def _continue_after_load(folder: str, configs: list[OptimizerConfig]) -> list[list[str]]:
    """Names of what differs between a run that goes on and one that is restored from its checkpoint."""
    found = []
    for number, config in enumerate(configs):
        path = Path(folder) / str(number)
        chunks, optimizer = build_training(DP_OVERLAP, "bf16", optimizer=config)
        update(chunks, optimizer, num_steps=3)
        _save(path, chunks, optimizer)
        update(chunks, optimizer, num_steps=2)
        expected = local_state(chunks, optimizer)
        steps = [group["step"] for group in optimizer.param_groups]

        chunks, optimizer = build_training(DP_OVERLAP, "bf16", optimizer=config)
        _load(path, chunks, optimizer)
        update(chunks, optimizer, num_steps=2)
        actual = local_state(chunks, optimizer)
        assert [group["step"] for group in optimizer.param_groups] == steps == [5] * len(steps)
        found.append([name for name in expected if not torch.equal(expected[name], actual[name])])
        assert expected.keys() == actual.keys()
    return found


def test_a_restored_run_goes_on_bit_for_bit(tmp_path: Path) -> None:
    configs = [FP32_MOMENTS, BF16_MOMENTS, MIXED]
    assert run_distributed(_continue_after_load, 2, str(tmp_path), configs) == [[[], [], []]] * 2


def _through(folder: str, runs: list[tuple[ParallelConfig, OptimizerConfig]], ties: bool = False) -> None:
    """Train and save in the first run; then, in each of the others, load what the one before saved, and save it."""
    for number, (parallel, config) in enumerate(runs):
        chunks, optimizer = build_training(parallel, "bf16", optimizer=config)
        update(chunks, optimizer, num_steps=3)  # what a load finds, it has to replace
        if number:
            _load(Path(folder) / str(number - 1), chunks, optimizer)
            assert _differing_replicas(chunks) == []
        elif ties:
            _put_between_two_bf16(chunks, optimizer)
        _save(Path(folder) / str(number), chunks, optimizer)


def _put_between_two_bf16(chunks: list[Any], optimizer: Any) -> None:
    """Main values of the ordinary distributed optimizer halfway between two bf16, and the weights that it makes."""
    for part in optimizer.chained_optimizers:
        for group in part.shard_fp32_from_float16_groups:
            for main in group:
                main.view(torch.int32).bitwise_and_(-0x10000).bitwise_or_(0x8000)
        part._copy_main_params_to_model_params()
    for chunk in chunks:
        chunk.start_param_sync(force_sync=True)


def test_every_optimizer_and_layout_loads_the_others_state(tmp_path: Path) -> None:
    runs = [(DP, BF16_MOMENTS), (DP, OPTIMIZER), (TP2, BF16_MOMENTS), (PLAIN, OPTIMIZER), (DP_OVERLAP, FP32_MOMENTS)]
    run_distributed(_through, 4, str(tmp_path), runs, timeout_s=120)
    for number in range(1, len(runs)):
        assert differing_tensors(tmp_path / "0", tmp_path / str(number)) == []


def test_main_values_of_the_ordinary_optimizer_are_taken_over(tmp_path: Path) -> None:
    """Also where its weights are rounded to even and ours up; then all processes get ours."""
    runs = [(DP, OPTIMIZER), (DP_OVERLAP, FP32_MOMENTS), (TP2, OPTIMIZER)]
    run_distributed(_through, 2, str(tmp_path), runs, True)
    for number in (1, 2):
        differing = differing_tensors(tmp_path / "0", tmp_path / str(number))
        assert differing and not any(name.startswith("optimizer.") for name in differing), differing
        _weights_are_the_upper_halves(tmp_path / str(number))


def _load_weights(folder: str) -> None:
    for number, config in enumerate((FP32_MOMENTS, FP32_MAIN)):
        chunks, optimizer = build_training(DP, "bf16", optimizer=config)
        update(chunks, optimizer, num_steps=2)
        _save(Path(folder) / "weights", chunks, None)
        update(chunks, optimizer, num_steps=2)
        _load(Path(folder) / "weights", chunks, optimizer, weights_only=True)
        _save(Path(folder) / str(number), chunks, optimizer)


def test_main_values_are_those_of_weights_that_are_loaded_in_mid_run(tmp_path: Path) -> None:
    run_distributed(_load_weights, 2, str(tmp_path))
    for number in (0, 1):
        tensors = WholeTensors(tmp_path / str(number))
        mains = [name for name in tensors if name.startswith(MAIN_PARAM_PREFIX)]
        assert mains
        for name in mains:
            weight = tensors.read(name.removeprefix(MAIN_PARAM_PREFIX))
            assert torch.equal(tensors.read(name), weight.float()), name
