"""A disk that is full, or becomes full during a save, costs that save and nothing else."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from megatron_synE.checkpoint import layout
from megatron_synE.config.parallel import ParallelConfig
from tests.helpers.checkpoint import TINY, build_training, update
from tests.helpers.distributed import run_distributed

DISK_BYTES = 8 * 2**20


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of its own."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={DISK_BYTES}", "tmpfs", str(folder)]
    if os.geteuid() != 0 or subprocess.run(mount, capture_output=True).returncode != 0:
        pytest.skip("mounting a small tmpfs is not permitted here")
    try:
        yield folder
    finally:
        subprocess.run(["umount", str(folder)], check=True)


def _save_on(folder: str) -> list[list[str]]:
    """Errors of saves, synchronous and in the background, on a disk that has too little room in several ways."""
    from megatron_synE.checkpoint import AsyncCheckpointer, save_checkpoint

    root, disk = Path(folder) / "run", Path(folder)
    chunks, optimizer = build_training(ParallelConfig(), "bf16")
    update(chunks, optimizer)
    options: dict[str, Any] = {
        "architecture": TINY, "model_chunks": chunks, "optimizer": optimizer, "rng_state": None, "state": {},
        "keep": 1,
    }  # fmt: skip
    checkpointer = AsyncCheckpointer()

    def in_background(step: int) -> None:
        checkpointer.save(root, step=step, **options)
        checkpointer.wait()

    def at_once(step: int) -> None:
        save_checkpoint(root, step=step, **options)

    at_once(1)
    size_bytes = sum(path.stat().st_size for path in (root / "step_00000001").iterdir())
    _fill(root / ".step_00000009.tmp" / "leftover", 0)
    at_once(2)  # a killed save left no room: its remains go first
    errors = [_errors([at_once, in_background], root, disk / "filler", size_bytes // 2)]
    enough_bytes, layout._too_little_room = layout._too_little_room, lambda *_: ""  # another job fills it meanwhile
    for free_bytes in (0, size_bytes // 2, size_bytes - 40_000, size_bytes - 4096):
        errors.append(_errors([at_once, in_background], root, disk / "filler", free_bytes))
    layout._too_little_room = enough_bytes
    in_background(4)
    assert [path.name for path in sorted(root.iterdir())] == ["latest", "step_00000004"]
    return errors


def _errors(saves: list[Callable[[int], None]], root: Path, filler: Path, free_bytes: int) -> list[str]:
    _fill(filler, free_bytes)
    found = []
    for save in saves:
        with pytest.raises(OSError) as error:
            save(3)
        found.append(str(error.value))
        torch.distributed.barrier()
        assert [path.name for path in sorted(root.iterdir())] == ["latest", "step_00000002"]
        torch.distributed.barrier()
    if torch.distributed.get_rank() == 0:
        filler.unlink()
    return found


def _fill(path: Path, free_bytes: int) -> None:
    """Write a file so large that `free_bytes` are left."""
    torch.distributed.barrier()
    if torch.distributed.get_rank() == 0:
        path.parent.mkdir(exist_ok=True)
        with open(path, "wb") as file:
            os.posix_fallocate(file.fileno(), 0, os.statvfs(path).f_bavail * os.statvfs(path).f_bsize - free_bytes)
    torch.distributed.barrier()


def test_a_full_disk_costs_one_save_and_says_what_to_do(small_disk: Path) -> None:
    first, second = run_distributed(_save_on, 2, str(small_disk))
    assert first == second
    beforehand, *during = first
    for message in beforehand:
        assert message.startswith(f"checkpoint.save: {small_disk}/run has ") and "bytes free, step 3 needs " in message
        assert "make room" in message
    for message in (text for texts in during for text in texts):
        assert message.startswith(f"checkpoint.save: step 3 could not be written to {small_disk}/run (")
        assert "No space left on device" in message and "make room" in message


def test_a_place_is_looked_at_before_the_start(small_disk: Path) -> None:
    layout.check_place(small_disk / "run" / "a", needed_bytes=DISK_BYTES // 2)
    assert not (small_disk / "run").exists()
    needed_bytes = 2 * DISK_BYTES
    with pytest.raises(ValueError, match=rf"{small_disk} has [\d,]+ bytes free, one checkpoint needs {needed_bytes:,}"):
        layout.check_place(small_disk / "run", needed_bytes)
    (small_disk / "file").touch()
    with pytest.raises(ValueError, match="file is no directory"):
        layout.check_place(small_disk / "file" / "run")
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    with pytest.raises(ValueError, match="cannot be written to"):
        layout.check_place(small_disk / "run")
    with pytest.raises(ValueError, match="cannot be written to"):
        layout.prepare(small_disk / "run", 1)
