"""SIGKILL at every stage of a save leaves a checkpoint that loads."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]

# What is about to happen when the process dies → the step that must load afterwards. Saved are steps 1, 2 and then 3,
# keeping two: the third save prunes the first.
KILL_POINTS = {
    "state.json is written": 2,
    "the fifth tensor is written": 2,
    "the metadata are written": 2,
    "the file list is written": 2,
    "the files are fsynced": 2,
    "latest is moved": 2,
    "old checkpoints are pruned": 3,
    "a pruned checkpoint's files are deleted": 3,
}


def test_a_kill_at_any_stage_leaves_a_checkpoint_that_loads(tmp_path: Path) -> None:
    report = _drive("stages", tmp_path)
    assert {point: report[point]["loaded_step"] for point in KILL_POINTS} == KILL_POINTS
    for point in KILL_POINTS:
        assert report[point]["killed"], point
        assert report[point]["weights_are_those_saved"], point
        assert report[point]["after_next_save"] == ["latest", "step_00000003", "step_00000004"], point


def test_a_kill_while_a_step_is_replaced_leaves_the_old_one(tmp_path: Path) -> None:
    report = _drive("replacing", tmp_path)
    assert report == {"killed": True, "loaded_step": 1, "after_next_save": ["latest", "step_00000001", "step_00000002"]}


def test_kills_at_random_times(tmp_path: Path) -> None:
    report = _drive("random", tmp_path)
    assert report["all_loaded"], report


def _drive(scenario: str, folder: Path) -> dict[str, Any]:
    """Run a scenario in one interpreter, which imports once and forks a child for each save and each load."""
    command = [sys.executable, "-W", "ignore", "-m", "tests.distributed.test_checkpoint_crash", scenario, str(folder)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


def _stages(folder: Path) -> dict[str, Any]:
    report = {}
    for number, point in enumerate(KILL_POINTS):
        root = folder / str(number)
        killed = _in_child(lambda root=root, point=point: _save_steps(root, [1, 2, 3], die_in_last_at=point))
        outcome = json.loads(_read_child(lambda root=root: json.dumps(_load(root))))
        _in_child(lambda root=root: _save_steps(root, [3, 4]))
        names = sorted(path.name for path in root.iterdir())
        report[point] = {"killed": killed == -signal.SIGKILL, "after_next_save": names, **outcome}
    return report


def _replacing(folder: Path) -> dict[str, Any]:
    killed = _in_child(lambda: _save_steps(folder, [1, 1], die_in_last_at="the new directory takes its name"))
    outcome = json.loads(_read_child(lambda: json.dumps(_load(folder))))
    _in_child(lambda: _save_steps(folder, [2]))
    names = sorted(path.name for path in folder.iterdir())
    return {"killed": killed == -signal.SIGKILL, "loaded_step": outcome["loaded_step"], "after_next_save": names}


def _random(folder: Path) -> dict[str, Any]:
    """Save in a loop, killed after a random time, again and again in the same directory."""
    choose = random.Random(0)
    _in_child(lambda: _save_steps(folder, [1]))
    steps, all_loaded = [1], True
    for _ in range(6):
        child = os.fork()
        if child == 0:
            _save_steps(folder, list(range(steps[-1] + 1, steps[-1] + 1000)))
            os._exit(1)
        newest = max(path.stat().st_mtime for path in folder.iterdir())
        while max(path.stat().st_mtime for path in folder.iterdir()) == newest:
            time.sleep(0.01)  # until the first save has begun
        time.sleep(choose.uniform(0, 0.5))
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        outcome = json.loads(_read_child(lambda: json.dumps(_load(folder))))
        all_loaded &= outcome["weights_are_those_saved"] and outcome["loaded_step"] >= steps[-1]
        steps.append(outcome["loaded_step"])
    return {"all_loaded": all_loaded, "steps": steps}


def _save_steps(root: Path, steps: list[int], die_in_last_at: str | None = None) -> None:
    """Weights of step n are all n."""
    from megatron_synE.checkpoint import save_checkpoint
    from tests.helpers.checkpoint import TINY

    chunks, optimizer = _build()
    for position, step in enumerate(steps):
        for parameter in chunks[0].parameters():
            parameter.data.fill_(step)
        if die_in_last_at and position == len(steps) - 1:
            _arm(die_in_last_at)
        save_checkpoint(root, step=step, architecture=TINY, model_chunks=chunks, optimizer=optimizer, rng_state=None,
                        state={}, keep=2)  # fmt: skip


def _load(root: Path) -> dict[str, Any]:
    from megatron_synE.checkpoint import find_latest, load_checkpoint
    from tests.helpers.checkpoint import TINY

    chunks, optimizer = _build()
    path = find_latest(root)
    assert path is not None
    loaded = load_checkpoint(path, architecture=TINY, model_chunks=chunks, optimizer=optimizer)
    same = all(bool((parameter == loaded.step).all()) for parameter in chunks[0].parameters())
    return {"loaded_step": loaded.step, "weights_are_those_saved": same}


def _build() -> tuple[list[Any], Any]:
    from megatron_synE.config.parallel import ParallelConfig
    from tests.helpers.checkpoint import build_training

    return build_training(ParallelConfig(use_distributed_optimizer=False, overlap_grad_reduce=False), "fp32")


def _arm(point: str) -> None:
    """Die, as by `kill -9`, in place of what `point` names."""
    import shutil

    from megatron_synE.checkpoint import files, layout, torch_dist

    def die(*args: Any, **kwargs: Any) -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    def at_call(number: int, original: Callable[..., Any]) -> Callable[..., Any]:
        calls = iter(range(1, 10**6))
        return lambda *args, **kwargs: die() if next(calls) == number else original(*args, **kwargs)

    places: dict[str, tuple[Any, str, Callable[..., Any]]] = {
        "state.json is written": (files, "write_text", at_call(2, files.write_text)),
        "the fifth tensor is written": (torch_dist, "_write_chunk", at_call(5, torch_dist._write_chunk)),
        "the metadata are written": (torch_dist.Writer, "finish", die),
        "the file list is written": (files, "write_file_list", die),
        "the files are fsynced": (layout, "_fsync_files", die),
        "latest is moved": (layout, "_write_latest", die),
        "old checkpoints are pruned": (layout, "_prune", die),
        "a pruned checkpoint's files are deleted": (shutil, "rmtree", die),
        "the new directory takes its name": (Path, "rename", at_call(3, Path.rename)),
    }
    owner, name, replacement = places[point]
    setattr(owner, name, replacement)


def _in_child(action: Callable[[], object]) -> int:
    """Exit status of a forked child that runs `action`: 0, or minus the signal that killed it."""
    child = os.fork()
    if child == 0:
        action()
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def _read_child(action: Callable[[], str]) -> str:
    """What `action` returns in a forked child."""
    read_end, write_end = os.pipe()
    child = os.fork()
    if child == 0:
        os.write(write_end, action().encode())
        os._exit(0)
    os.close(write_end)
    with os.fdopen(read_end) as stream:
        text = stream.read()
    os.waitpid(child, 0)
    return text


if __name__ == "__main__":
    import megatron_synE.checkpoint.sharded
    import megatron_synE.model
    import megatron_synE.training.optimizer  # noqa: F401 - imported once, before all forks

    scenarios = {"stages": _stages, "replacing": _replacing, "random": _random}
    print(json.dumps(scenarios[sys.argv[1]](Path(sys.argv[2]))))
