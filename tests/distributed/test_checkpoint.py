"""Checkpoints across layouts: every tensor arrives bit for bit, whatever wrote it."""

from __future__ import annotations

import dataclasses
import errno
import functools
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from megatron_synE.checkpoint.whole_tensors import WholeTensors
from megatron_synE.config.parallel import ParallelConfig
from tests.helpers.checkpoint import TINY, build_training, differing_tensors, local_state, update
from tests.helpers.checkpoint_files import flip_bit
from tests.helpers.distributed import run_distributed

DP4 = ParallelConfig()
TP2_PP2 = ParallelConfig(tensor_model_parallel_size=2, pipeline_model_parallel_size=2)
PP2_VPP2_DP2 = ParallelConfig(pipeline_model_parallel_size=2, virtual_pipeline_model_parallel_size=2)
TP2_DP2_PLAIN = ParallelConfig(tensor_model_parallel_size=2, use_distributed_optimizer=False, overlap_grad_reduce=False)
DP_PLAIN = ParallelConfig(use_distributed_optimizer=False, overlap_grad_reduce=False)
TP2_DP2_OVERLAP = ParallelConfig(tensor_model_parallel_size=2, overlap_param_gather=True)


def _save(root: Path, chunks: list[Any], optimizer: Any, step: int = 3) -> Path:
    from megatron_synE.checkpoint import collect_rng_state, save_checkpoint

    return save_checkpoint(
        root, step=step, architecture=TINY, model_chunks=chunks, optimizer=optimizer, rng_state=collect_rng_state(),
        state={"stream": {"cursor": 7}},
    )  # fmt: skip


def _through_layouts(folder: str, dtype: str, layouts: list[ParallelConfig]) -> list[list[bool]]:
    """Train and save in the first layout; then, in each of the others, load what the one before saved, and save it."""
    from megatron_synE.checkpoint import load_checkpoint

    restored = []
    for number, parallel in enumerate(layouts):
        chunks, optimizer = build_training(parallel, dtype)
        update(chunks, optimizer, num_steps=3)  # what a load finds in weights and moments, it has to replace
        if number:
            source = f"{folder}/{number - 1}"
            loaded = load_checkpoint(source, architecture=TINY, model_chunks=chunks, optimizer=optimizer)
            assert (loaded.step, loaded.state["stream"]) == (3, {"cursor": 7})
            restored.append([loaded.has_optimizer, loaded.rng_state is not None])
        _save(Path(folder) / str(number), chunks, optimizer)
    return restored


def test_every_layout_loads_the_same_tensors(tmp_path: Path) -> None:
    layouts = [TP2_PP2, PP2_VPP2_DP2, TP2_DP2_PLAIN, TP2_DP2_OVERLAP, DP4]
    results = run_distributed(_through_layouts, 4, str(tmp_path), "bf16", layouts, timeout_s=120)
    # The optimizer always; generators' states belong to the layout that saved them.
    assert results == [[[True, False], [True, False], [True, True], [True, False]]] * 4
    for number in range(1, len(layouts)):
        assert differing_tensors(tmp_path / "0", tmp_path / str(number)) == []


def test_fp32_state_moves_between_plain_and_distributed_optimizer(tmp_path: Path) -> None:
    run_distributed(_through_layouts, 2, str(tmp_path), "fp32", [DP_PLAIN, TP2_DP2_OVERLAP, DP_PLAIN])
    assert differing_tensors(tmp_path / "0", tmp_path / "2") == []
    differing = differing_tensors(tmp_path / "0", tmp_path / "1")
    # The plain fp32 optimizer has no main parameters apart from the weights.
    assert all(name.startswith("optimizer.state.fp32_param.") for name in differing)
    assert len(differing) == 4 * 6 + 3


def _continue_after_load(folder: str) -> list[list[str]]:
    """Names of what differs between a run that goes on and one that is restored from its checkpoint."""
    from megatron_synE.checkpoint import load_checkpoint, restore_rng_state

    found = []
    for dtype in ("bf16", "fp32"):
        chunks, optimizer = build_training(TP2_DP2_OVERLAP, dtype)
        update(chunks, optimizer, num_steps=2)
        path = _save(Path(folder) / dtype, chunks, optimizer)
        drawn = torch.rand(5)
        update(chunks, optimizer, num_steps=2)
        expected = local_state(chunks, optimizer)

        update(chunks, optimizer)
        loaded = load_checkpoint(path, architecture=TINY, model_chunks=chunks, optimizer=optimizer)
        assert loaded.rng_state is not None
        restore_rng_state(loaded.rng_state)
        assert torch.equal(torch.rand(5), drawn)
        update(chunks, optimizer, num_steps=2)
        actual = local_state(chunks, optimizer)
        found.append([name for name in expected if not torch.equal(expected[name], actual[name])])

        chunks, optimizer = build_training(TP2_DP2_OVERLAP, dtype)
        loaded = load_checkpoint(
            path, architecture=TINY, model_chunks=chunks, optimizer=optimizer, weights_only=True
        )
        assert not loaded.has_optimizer
        _save(Path(folder) / f"{dtype}_fresh_optimizer", chunks, optimizer)
    return found


def test_same_layout_goes_on_bit_for_bit_and_weights_start_a_fresh_optimizer(tmp_path: Path) -> None:
    assert run_distributed(_continue_after_load, 2, str(tmp_path)) == [[[], []]] * 2
    for dtype in ("bf16", "fp32"):
        source, fresh = WholeTensors(tmp_path / dtype), WholeTensors(tmp_path / f"{dtype}_fresh_optimizer")
        for name in fresh:
            if name.startswith("optimizer.state.fp32_param."):
                weight = source.read(name.removeprefix("optimizer.state.fp32_param."))
                assert torch.equal(fresh.read(name), weight.float()), name
            elif name.startswith("optimizer.state."):
                assert not fresh.read(name).any(), name
            elif name != "rng_state":
                assert torch.equal(fresh.read(name), source.read(name)), name


def _save_in_background(folder: str) -> list[str]:
    from megatron_synE.checkpoint import AsyncCheckpointer, find_latest, save_checkpoint

    chunks, optimizer = build_training(TP2_DP2_OVERLAP, "bf16")
    update(chunks, optimizer)
    _save(Path(folder) / "expected", chunks, optimizer, step=1)
    common: dict[str, Any] = {
        "architecture": TINY, "model_chunks": chunks, "optimizer": optimizer, "rng_state": None, "state": {},
    }  # fmt: skip
    root = Path(folder) / "actual"
    checkpointer = AsyncCheckpointer()
    checkpointer.save(root, step=1, **common)
    seen = [find_latest(root)]
    update(chunks, optimizer)  # must not reach the snapshot
    checkpointer.save(root, step=2, **common)
    seen.append(find_latest(root))
    checkpointer.wait()
    assert checkpointer.poll()
    seen.append(find_latest(root))

    _fill_the_disk_of_rank_1()
    for save in (lambda: save_checkpoint(root, step=3, **common), lambda: checkpointer.save(root, step=3, **common)):
        with pytest.raises(OSError, match=r"step 3 could not be written to .*No space left"):
            save()
            checkpointer.wait()
        seen.append(find_latest(root))
        torch.distributed.barrier()
    return [path.name if path else "" for path in seen] + sorted(path.name for path in root.iterdir())


def _fill_the_disk_of_rank_1() -> None:
    from megatron_synE.checkpoint import torch_dist

    def fail(*args: Any, **kwargs: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    if torch.distributed.get_rank() == 1:
        torch_dist._write_chunk = fail


def test_background_save_is_a_snapshot_and_a_full_disk_spoils_nothing(tmp_path: Path) -> None:
    results = run_distributed(_save_in_background, 2, str(tmp_path))
    first, second = "step_00000001", "step_00000002"
    assert results == [["", first, second, second, second, "latest", first, second]] * 2
    assert differing_tensors(tmp_path / "expected", tmp_path / "actual" / "step_00000001") == []
    assert differing_tensors(tmp_path / "expected", tmp_path / "actual" / "step_00000002") != []


def _load_broken(folder: str) -> list[str]:
    """The errors of a checkpoint of another model, and of one whose files are damaged, one after the other."""
    from megatron_synE.checkpoint import load_checkpoint

    chunks, optimizer = build_training(ParallelConfig(tensor_model_parallel_size=2), "fp32")
    path = _save(Path(folder), chunks, optimizer)
    sound = Path(folder) / "sound"
    messages = []
    for breaking in (None, *_DAMAGES):
        if breaking and torch.distributed.get_rank() == 0:
            shutil.copytree(path, sound)
            breaking(path)
        torch.distributed.barrier()
        architecture = TINY if breaking else dataclasses.replace(TINY, num_layers=5, rotary_base=10000.0)
        try:
            load_checkpoint(path, architecture=architecture, model_chunks=chunks, optimizer=optimizer)
            messages.append("loaded")
        except ValueError as error:
            messages.append(f"{type(error).__name__}: {error}")
        torch.distributed.barrier()
        if breaking and torch.distributed.get_rank() == 0:
            shutil.rmtree(path)
            sound.rename(path)
    torch.distributed.barrier()
    load_checkpoint(path, architecture=TINY, model_chunks=chunks, optimizer=optimizer)
    return messages


def _overwrite_half_of_a_file(path: Path) -> None:
    victim = sorted(path.glob("*.distcp"))[-1]
    content = bytearray(victim.read_bytes())
    content[: len(content) // 2] = bytes(len(content) // 2)
    victim.write_bytes(content)


def _cut_a_file(path: Path) -> None:
    victim = sorted(path.glob("*.distcp"))[-1]
    victim.write_bytes(victim.read_bytes()[:-1])


def _flip(path: Path, name: str) -> None:
    victim = sorted(path.glob(name))[-1]
    flip_bit(victim, 8 * victim.stat().st_size * 2 // 3)


_FLIPPED = ("*.distcp", "state.json", "index.json", "metadata.json", "files.json")
_DAMAGES = (_overwrite_half_of_a_file, _cut_a_file, *(functools.partial(_flip, name=name) for name in _FLIPPED))


def test_what_cannot_be_loaded_is_one_error_on_every_rank(tmp_path: Path) -> None:
    results = run_distributed(_load_broken, 2, str(tmp_path))
    assert results[0] == results[1]
    other_model, broken, cut, *flipped = results[0]
    assert "num_layers is 4, this run has 5; rotary_base is 500000.0, this run has 10000.0" in other_model
    assert all(message.startswith("DamagedCheckpoint: ") for message in (broken, cut, *flipped))
    assert "step_00000003" in broken and ".distcp" in broken
    assert ".distcp" in cut and "written were" in cut
    assert len(flipped) == len(_FLIPPED)
    for message, name in zip(flipped, _FLIPPED, strict=True):
        assert name.removeprefix("*") in message and "weights_only" not in message


def _save_what_is_not_finite(folder: str) -> list[str]:
    """Errors of saving NaN in a weight that only one rank holds, and infinity in a moment."""
    from megatron_synE.checkpoint import AsyncCheckpointer, NonFiniteState, find_latest, save_checkpoint

    chunks, optimizer = build_training(ParallelConfig(pipeline_model_parallel_size=2), "bf16")
    update(chunks, optimizer)
    root = Path(folder)
    common: dict[str, Any] = {
        "architecture": TINY, "model_chunks": chunks, "optimizer": optimizer, "rng_state": None, "state": {},
        "keep": 1,
    }  # fmt: skip
    save_checkpoint(root, step=1, **common)
    is_last = torch.distributed.get_rank() == 1
    errors = []
    parameters = dict(chunks[0].named_parameters())
    norm = next(value for name, value in parameters.items() if is_last <= name.endswith("final_layernorm.weight"))
    moment = next(iter(optimizer.chained_optimizers[0].optimizer.state.values()))["exp_avg_sq"]
    for target, value in ((norm.data, float("nan")), (moment, float("inf"))):
        before = target.clone()
        if is_last:
            target.view(-1)[3] = value
        for save in (save_checkpoint, AsyncCheckpointer().save):
            with pytest.raises(NonFiniteState) as error:
                save(root, step=2, **common)
            errors.append(str(error.value))
        target.copy_(before)
    torch.distributed.barrier()
    assert find_latest(root) == root / "step_00000001"
    assert sorted(path.name for path in root.iterdir()) == ["latest", "step_00000001"]
    save_checkpoint(root, step=2, **common)
    return errors


def test_what_is_not_finite_is_not_saved(tmp_path: Path) -> None:
    results = run_distributed(_save_what_is_not_finite, 2, str(tmp_path))
    assert results[0] == results[1]
    for message in results[0]:
        assert message.startswith("checkpoint.save: step 2 is not saved, ") and "holds NaN or infinity" in message
    assert all("decoder.final_layernorm.weight" in message for message in results[0][:2])
    assert all("optimizer.state.exp_avg_sq." in message for message in results[0][2:])
