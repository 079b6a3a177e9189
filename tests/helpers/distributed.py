"""Runs a function in several gloo processes and brings back what each returned."""

from __future__ import annotations

import os
import tempfile
import traceback
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.multiprocessing as mp


def run_distributed(fn: Callable[..., Any], world_size: int, *args: Any, timeout_s: int = 240) -> list[Any]:
    """Call `fn(*args)` in `world_size` processes with RANK, WORLD_SIZE … set as torchrun sets them.

    `fn` is importable at module level and calls `megatron_synE.runtime.initialize` itself. Its results are tensors,
    numbers, strings, lists and dicts of them; they come back as a list by rank. A failure in any process raises
    AssertionError with that process's traceback.
    """
    # The parent keeps the rendezvous store, as torchrun does: a port of the system's choice, without a race for it.
    store = torch.distributed.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    with tempfile.TemporaryDirectory() as folder:
        context = mp.start_processes(
            _run, args=(world_size, store.port, folder, fn, args), nprocs=world_size, join=False, start_method="spawn"
        )
        deadline = timeout_s
        try:
            while not context.join(timeout=1.0):
                deadline -= 1
                if deadline < 0:
                    raise AssertionError(f"{fn.__name__}: {world_size} processes did not end in {timeout_s} s")
        except mp.ProcessRaisedException as error:
            raise AssertionError(str(error)) from None
        finally:
            for process in context.processes:
                if process.is_alive():
                    process.kill()
                process.join()
        return [torch.load(Path(folder) / f"{rank}.pt", weights_only=True) for rank in range(world_size)]


def _run(rank: int, world_size: int, port: int, folder: str, fn: Callable[..., Any], args: tuple[Any, ...]) -> None:
    os.environ.update(
        RANK=str(rank),
        LOCAL_RANK=str(rank),
        WORLD_SIZE=str(world_size),
        LOCAL_WORLD_SIZE=str(world_size),
        MASTER_ADDR="127.0.0.1",
        MASTER_PORT=str(port),
        TORCHELASTIC_USE_AGENT_STORE="True",
        OMP_NUM_THREADS="1",
    )
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    try:
        result = fn(*args)
    except Exception:
        raise RuntimeError(f"rank {rank}:\n{traceback.format_exc()}") from None
    finally:
        if torch.distributed.is_initialized():
            torch.distributed.destroy_process_group()
    torch.save(result, Path(folder) / f"{rank}.pt")
