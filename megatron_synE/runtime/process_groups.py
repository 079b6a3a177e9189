"""torch.distributed and megatron-core's parallel state."""

from __future__ import annotations

import os
import random
from dataclasses import dataclass
from datetime import timedelta

import numpy as np
import torch

from megatron_synE.config.parallel import ParallelConfig
from megatron_synE.runtime import cpu
from megatron_synE.runtime.device import choose_device


@dataclass(frozen=True)
class Runtime:
    """Where this process stands. Ranks and sizes are named as megatron-core names them."""

    device: torch.device
    rank: int
    world_size: int
    data_parallel_rank: int
    data_parallel_size: int
    tensor_model_parallel_rank: int
    pipeline_model_parallel_rank: int
    context_parallel_rank: int
    host_group: torch.distributed.ProcessGroup
    """gloo over all processes: what they agree on by its collectives makes no host wait for its device."""

    @property
    def is_main(self) -> bool:
        """Whether this process speaks for the run."""
        return self.rank == 0


def world_size_from_environment() -> int:
    """Number of processes that torchrun started, 1 without torchrun."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def initialize(parallel: ParallelConfig, seed: int = 1234) -> Runtime:
    """Bring up torch.distributed (nccl or gloo), megatron-core's process groups and the random number generators.

    A torch.distributed that is already up is used as it is. Otherwise reads RANK, LOCAL_RANK, WORLD_SIZE, MASTER_ADDR
    and MASTER_PORT as torchrun sets them; alone, it is a world of one.

    Raises:
        ValueError: the number of processes does not fit `parallel`, or the device is absent.
    """
    world_size = world_size_from_environment()
    problems = parallel.problems() + parallel.problems_with_world(world_size)
    if problems:
        raise ValueError("\n".join(problems))
    set_cuda_environment(parallel)
    device = choose_device(parallel.device, int(os.environ.get("LOCAL_RANK", "0")))
    if device.type == "cpu":
        cpu.install()
    else:
        torch.cuda.set_device(device)
    _initialize_torch_distributed(device, world_size, parallel.timeout_minutes)

    from megatron.core import parallel_state

    parallel_state.initialize_model_parallel(
        tensor_model_parallel_size=parallel.tensor_model_parallel_size,
        pipeline_model_parallel_size=parallel.pipeline_model_parallel_size,
        virtual_pipeline_model_parallel_size=parallel.virtual_pipeline_model_parallel_size,
        context_parallel_size=parallel.context_parallel_size,
        distributed_timeout_minutes=parallel.timeout_minutes,
    )
    _seed_everything(seed)
    return Runtime(
        device=device,
        rank=torch.distributed.get_rank(),
        world_size=world_size,
        data_parallel_rank=parallel_state.get_data_parallel_rank(),
        data_parallel_size=parallel_state.get_data_parallel_world_size(),
        tensor_model_parallel_rank=parallel_state.get_tensor_model_parallel_rank(),
        pipeline_model_parallel_rank=parallel_state.get_pipeline_model_parallel_rank(),
        context_parallel_rank=parallel_state.get_context_parallel_rank(),
        host_group=_host_group(device, parallel.timeout_minutes),
    )


def set_cuda_environment(parallel: ParallelConfig) -> None:
    """What the CUDA driver reads when it starts, so before the first question to it; a value that is set is kept.

    With one hardware queue, kernels start in the order of their launches. Tensor and context parallelism need that: a
    collective is launched just before the product that hides it, and must not find the multiprocessors taken.
    Otherwise CUDA's own number of queues is the better one: gradients are reduced and parameters gathered beside the
    products, and nothing depends on their order.
    """
    if parallel.tensor_model_parallel_size > 1 or parallel.context_parallel_size > 1:
        os.environ.setdefault("CUDA_DEVICE_MAX_CONNECTIONS", "1")


def _host_group(device: torch.device, timeout_minutes: int) -> torch.distributed.ProcessGroup:
    if device.type == "cpu":
        world = torch.distributed.group.WORLD
        assert world is not None, "torch.distributed is up"
        return world
    return torch.distributed.new_group(backend="gloo", timeout=timedelta(minutes=timeout_minutes))


def shut_down() -> None:
    """Leave all process groups; safe to call when there are none."""
    if not torch.distributed.is_initialized():
        return
    from megatron.core import parallel_state

    parallel_state.destroy_model_parallel()
    torch.distributed.destroy_process_group()


def _initialize_torch_distributed(device: torch.device, world_size: int, timeout_minutes: int) -> None:
    if torch.distributed.is_initialized():
        return
    backend = "nccl" if device.type == "cuda" else "gloo"
    timeout = timedelta(minutes=timeout_minutes)
    rank = int(os.environ.get("RANK", "0"))
    if "MASTER_ADDR" not in os.environ:
        store: torch.distributed.Store | None = torch.distributed.HashStore()
    else:
        store = _store_of_this_start(world_size, timeout)
    torch.distributed.init_process_group(
        backend, store=store, rank=rank, world_size=world_size, timeout=timeout,
        # nccl then connects at once, on this GPU and no other; gloo has nothing to bind.
        device_id=device if backend == "nccl" else None,
    )  # fmt: skip


def _store_of_this_start(world_size: int, timeout: timedelta) -> torch.distributed.Store | None:
    """torchrun's own store, under names of this start; None where torch brings up a store itself.

    One store lives through all restarts of a torchrun, and torch's names in it do not tell them apart: gloo would look
    for its peers under the addresses of processes that have died.
    """
    if os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True":
        return None
    host, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    store = torch.distributed.TCPStore(host, port, world_size, is_master=False, timeout=timeout)
    start = f"restart_{os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}/world_{world_size}"
    return torch.distributed.PrefixStore(start, store)


def _seed_everything(seed: int) -> None:
    """Seeds differ by pipeline stage, so that two stages from scratch do not start with equal layers."""
    from megatron.core import parallel_state, tensor_parallel

    seed += 100 * parallel_state.get_pipeline_model_parallel_rank()
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)
    tensor_parallel.model_parallel_cuda_manual_seed(seed)
