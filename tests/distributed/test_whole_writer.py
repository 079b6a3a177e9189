"""A checkpoint written tensor by tensor: loads at any layout bit for bit, and is what torch's own reader reads."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from megatron_synE.checkpoint import read_state, whole_writer
from megatron_synE.checkpoint.hf.mapping import parameters, stored_shape
from megatron_synE.checkpoint.lazy_tensor import LazyTensor
from megatron_synE.checkpoint.whole_tensors import WholeTensors
from megatron_synE.checkpoint.whole_writer import write_whole
from megatron_synE.config.parallel import ParallelConfig
from tests.helpers.checkpoint import TINY, differing_tensors
from tests.helpers.distributed import run_distributed

LAYOUTS = {"tp1": (1, 1), "tp2": (2, 1), "pp2": (1, 2)}


def _value(name: str, shape: tuple[int, ...]) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(len(name) + shape[0]))


def lazy_tensors() -> list[LazyTensor]:
    """All parameters of the tiny model."""
    tensors = []
    for parameter in parameters(TINY):
        name, shape = parameter.name, stored_shape(parameter, TINY)
        tensors.append(LazyTensor(name, shape, torch.float32, lambda name=name, shape=shape: _value(name, shape)))
    return tensors


def write(root: Path) -> Path:
    """In many small chunks and several files."""
    whole_writer.CHUNK_BYTES, whole_writer.FILE_BYTES = 1000, 10_000
    return write_whole(root, step=0, tensors=lazy_tensors(), architecture=TINY, state={"note": "x"}, identity={})


def _load_and_save(folder: str, name: str) -> None:
    from megatron_synE.checkpoint import load_checkpoint, save_checkpoint
    from tests.helpers.checkpoint import build_model

    tp_size, pp_size = LAYOUTS[name]
    parallel = ParallelConfig(tensor_model_parallel_size=tp_size, pipeline_model_parallel_size=pp_size)
    chunks = build_model(parallel, "fp32")
    loaded = load_checkpoint(f"{folder}/whole", architecture=TINY, model_chunks=chunks)
    assert (loaded.step, loaded.has_optimizer, loaded.state["note"]) == (0, False, "x")
    save_checkpoint(f"{folder}/{name}", step=0, architecture=TINY, model_chunks=chunks, optimizer=None, rng_state=None,
                    state={})  # fmt: skip


@pytest.fixture(autouse=True)
def _restore_sizes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(whole_writer, "CHUNK_BYTES", whole_writer.CHUNK_BYTES)
    monkeypatch.setattr(whole_writer, "FILE_BYTES", whole_writer.FILE_BYTES)


def test_it_loads_at_every_layout(tmp_path: Path) -> None:
    path = write(tmp_path / "whole")
    assert len(list(path.glob("*.distcp"))) > 2
    assert not (tmp_path / "whole" / ".unfinished").exists()
    assert read_state(path)["layout"]["world_size"] == 1
    stored = WholeTensors(path)
    assert all(torch.equal(stored.read(tensor.name), tensor.read()) for tensor in lazy_tensors())
    for name, (tp_size, pp_size) in LAYOUTS.items():
        run_distributed(_load_and_save, tp_size * pp_size, str(tmp_path), name)
        assert differing_tensors(tmp_path / "whole", tmp_path / name) == []


def test_torch_and_megatron_core_read_it(tmp_path: Path) -> None:
    from megatron.core.dist_checkpointing import load_common_state_dict
    from megatron.core.dist_checkpointing.core import check_is_distributed_checkpoint
    from torch.distributed.checkpoint import FileSystemReader, load

    path = write(tmp_path / "whole")
    target = {tensor.name: torch.zeros(tensor.shape) for tensor in lazy_tensors()}
    load(target, storage_reader=FileSystemReader(path), no_dist=True)
    assert all(torch.equal(target[tensor.name], tensor.read()) for tensor in lazy_tensors())
    assert check_is_distributed_checkpoint(str(path))
    assert load_common_state_dict(str(path)) == {}


def test_a_killed_write_goes_on(tmp_path: Path) -> None:
    script = (
        "import os, sys; from pathlib import Path\n"
        "from tests.distributed import test_whole_writer as test\n"
        "original, reads = test._value, []\n"
        "def value(name, shape):\n"
        "    reads.append(name); print(name, flush=True)\n"
        "    if len(reads) == int(sys.argv[2]): os.kill(os.getpid(), 9)\n"
        "    return original(name, shape)\n"
        "test._value = value\n"
        "test.write(Path(sys.argv[1]))\n"
    )
    reads = []
    for stop in (14, 999):
        command = [sys.executable, "-W", "ignore", "-c", script, str(tmp_path / "killed"), str(stop)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=120)
        assert done.returncode == (-signal.SIGKILL if stop == 14 else 0), done.stderr
        reads.append(done.stdout.split())
    assert not set(reads[0][:5]) & set(reads[1])  # the first file was finished
    assert set(reads[0]) | set(reads[1]) == {tensor.name for tensor in lazy_tensors()}
    whole, killed = write(tmp_path / "whole"), tmp_path / "killed" / "step_00000000"
    assert {path.name for path in whole.iterdir()} == {path.name for path in killed.iterdir()}
    for path in whole.iterdir():
        assert path.name in (".metadata", "files.json") or path.read_bytes() == (killed / path.name).read_bytes()


def test_what_is_there_is_replaced(tmp_path: Path) -> None:
    write(tmp_path / "whole")
    path = write(tmp_path / "whole")
    assert sorted(entry.name for entry in (tmp_path / "whole").iterdir()) == ["latest", path.name]
