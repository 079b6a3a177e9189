"""Runs megatron-core's own code on a machine without CUDA.

megatron-core names the CUDA device in a few places although the work behind it (gloo collectives, autograd,
optimizer steps) runs anywhere. `install()` redirects exactly these places, once, before any process group exists,
and only where CUDA is absent. Nothing of megatron-core is replaced but where it asks for a device.

| what is patched | why |
| --- | --- |
| `torch.cuda.current_device` | the device of buffers, receive tensors and gathered outputs: `torch.device("cpu")` |
| `torch.cuda.{synchronize, empty_cache, set_device}`, `nvtx` | nothing to wait for, to free or to choose |
| `torch.cuda.{Stream, Event, stream, current_stream, default_stream}` | one queue, in program order |
| `torch.cuda.{manual_seed, get_rng_state, set_rng_state}` | the generator is the CPU's |
| `tensor_parallel.random._get/_set_cuda_rng_state` | the same, for the tracker's forked states |
| the logger of `tensor_parallel.random` | drops "CPU RNG state changed …": here both are one generator |
| `torch.Tensor.cuda` | moving to the device is the identity |
| `torch.distributed.all_gather_into_tensor` | NCCL looks at sizes only, gloo at shapes: both tensors are flattened |
| `param_and_grad_buffer.dist_*_func` | one process alone has the result already, and gloo would copy it |
| optimizers and gradients of Transformer Engine and Apex | they need CUDA: torch's, as where neither is installed |
| literals in `LITERAL_MODULES` | `device="cuda"` in calls, type names such as `"torch.cuda.FloatTensor"` in checks |

The literals are changed in the code objects' constants, so that the functions keep their identity wherever they were
already imported.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import importlib.metadata
import inspect
import logging
import sys
import types
from collections.abc import Callable, Iterator
from typing import Any

import torch

MEGATRON_CORE_RANGE = ("0.16.1", "0.17")

LITERALS = {
    "cuda": "cpu",
    "torch.cuda.FloatTensor": "torch.FloatTensor",
    "torch.cuda.HalfTensor": "torch.HalfTensor",
    "torch.cuda.BFloat16Tensor": "torch.BFloat16Tensor",
}

LITERAL_MODULES = (
    "megatron.core.dist_checkpointing.exchange_utils",
    "megatron.core.dist_checkpointing.strategies.state_dict_saver",
    "megatron.core.optimizer.clip_grads",
    "megatron.core.optimizer.distrib_optimizer",
    "megatron.core.optimizer.grad_scaler",
    "megatron.core.optimizer.optimizer",
    "megatron.core.pipeline_parallel.schedules",
    "megatron.core.rerun_state_machine",
    "megatron.core.tensor_parallel.data",
    "megatron.core.transformer.utils",
    "megatron.core.utils",
)

_RNG_WARNING = "CPU RNG state changed within GPU RNG context"


class CpuStream:
    """A stream of a device that runs everything in program order: each wait has already happened."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        pass

    def _in_order(self, *args: Any, **kwargs: Any) -> None:
        return None

    wait_stream = wait_event = synchronize = record = wait = _in_order

    def record_event(self, event: CpuStream | None = None) -> CpuStream:
        return event or CpuStream()

    def query(self) -> bool:
        return True


class CpuEvent(CpuStream):
    """An event on such a stream: it has already happened."""


def install() -> None:
    """Install the adapter; a second call does nothing.

    Raises:
        ValueError: the installed megatron-core is outside the range that this adapter was written for.
    """
    assert not torch.cuda.is_available(), "the CPU adapter must not hide a real CUDA device"
    _check_version(importlib.metadata.version("megatron-core"))
    if getattr(torch.cuda, "megatron_synE_cpu_adapter", False):
        return
    for name in LITERAL_MODULES:
        replace_literals(importlib.import_module(name), LITERALS)
    _patch_rng()
    _patch_torch_cuda()
    _patch_all_gather()
    _patch_collectives_of_one()
    _patch_optimizers_and_gradients()
    torch.cuda.megatron_synE_cpu_adapter = True  # type: ignore[attr-defined]


def _check_version(version: str) -> None:
    numbers = tuple(int(part) for part in version.split(".")[:3])
    low, high = (tuple(int(part) for part in bound.split(".")) for bound in MEGATRON_CORE_RANGE)
    if not low <= numbers < high:
        raise ValueError(
            f"megatron-core {version} is installed, but running without a GPU needs "
            f">={MEGATRON_CORE_RANGE[0]},<{MEGATRON_CORE_RANGE[1]}; install that version"
        )


def _patch_torch_cuda() -> None:
    cpu = torch.device("cpu")
    in_order = CpuStream()

    def nothing() -> Callable[..., None]:
        # Each name gets an object of its own: torch's compiler keeps a table of rules by function.
        return lambda *args, **kwargs: None

    replacements: dict[str, Any] = {
        "current_device": lambda: cpu,
        "synchronize": nothing(),
        "empty_cache": nothing(),
        "set_device": nothing(),
        "Stream": CpuStream,
        "Event": CpuEvent,
        "stream": lambda stream: contextlib.nullcontext(stream),
        "current_stream": lambda device=None: in_order,
        "default_stream": lambda device=None: in_order,
        "manual_seed": torch.default_generator.manual_seed,
        "get_rng_state": lambda device="cpu": torch.get_rng_state(),
        "set_rng_state": lambda new_state, device="cpu": torch.set_rng_state(new_state),
    }
    for name, replacement in replacements.items():
        setattr(torch.cuda, name, replacement)
    for name in ("range_push", "range_pop", "mark"):
        setattr(torch.cuda.nvtx, name, nothing())
    torch.Tensor.cuda = lambda self, *args, **kwargs: self  # type: ignore[method-assign]


def _patch_all_gather() -> None:
    strict = torch.distributed.all_gather_into_tensor
    tolerant = torch.distributed.all_gather_into_tensor = by_size(strict)
    for name, module in list(sys.modules.items()):
        if name.startswith("megatron.core.") and getattr(module, "dist_all_gather_func", None) is strict:
            module.dist_all_gather_func = tolerant  # type: ignore[attr-defined] # the name that it is imported under


def by_size(all_gather: Callable[..., Any]) -> Callable[..., Any]:
    """`all_gather(output, input, ...)` of any two shapes: the output has as many elements as all inputs together."""

    @functools.wraps(all_gather)
    def call(output_tensor: torch.Tensor, input_tensor: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        return all_gather(output_tensor.view(-1), input_tensor.reshape(-1), *args, **kwargs)

    return call


def _patch_optimizers_and_gradients() -> None:
    from megatron.core import optimizer as package
    from megatron.core import utils
    from megatron.core.optimizer import clip_grads, distrib_optimizer, optimizer
    from megatron.core.tensor_parallel import layers

    package.Adam, package.SGD, package.USING_PYTORCH_OPTIMIZER = torch.optim.AdamW, torch.optim.SGD, True
    distrib_optimizer.Adam, distrib_optimizer.HAVE_APEX_OR_TE = torch.optim.Adam, False
    distrib_optimizer.USING_TE_OPTIMIZER = distrib_optimizer.USING_APEX_OPTIMIZER = False
    for module in (clip_grads, optimizer):
        module.multi_tensor_applier = utils.local_multi_tensor_applier
        module.multi_tensor_scale_impl = utils.local_multi_tensor_scale
    clip_grads.l2_norm_impl = utils.local_multi_tensor_l2_norm
    layers._grad_accum_fusion_available = layers.HAVE_TE = False


def _patch_collectives_of_one() -> None:
    from megatron.core.distributed import param_and_grad_buffer

    for name in ("dist_reduce_scatter_func", "dist_all_gather_func"):
        setattr(param_and_grad_buffer, name, unless_alone(getattr(param_and_grad_buffer, name)))


def unless_alone(collective: Callable[..., Any]) -> Callable[..., Any]:
    """`collective(output, input, *, group, ...)`, left out where it is alone in the group and output is input."""

    @functools.wraps(collective)
    def call(output: torch.Tensor, source: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        alone = kwargs["group"].size() == 1 and output.data_ptr() == source.data_ptr()
        return None if alone else collective(output, source, *args, **kwargs)

    return call


def _patch_rng() -> None:
    from megatron.core.tensor_parallel import random

    def get_state(device: Any = "cpu", clone: bool = False, graph_safe: bool = False) -> torch.Tensor:
        return torch.get_rng_state()

    def set_state(new_state: torch.Tensor, device: Any = -1, graph_safe: bool = False) -> None:
        torch.set_rng_state(new_state)

    random._get_cuda_rng_state = get_state
    random._set_cuda_rng_state = set_state
    logging.getLogger(random.__name__).addFilter(lambda record: record.getMessage() != _RNG_WARNING)


def replace_literals(module: types.ModuleType, literals: dict[str, str]) -> None:
    """Change string constants in the code of every function and method that `module` defines."""
    for function in functions_of(module):
        function.__code__ = _with_literals(function.__code__, literals)


def functions_of(module: types.ModuleType) -> Iterator[types.FunctionType]:
    """All functions and methods written in `module`, seen through decorators."""
    for member in vars(module).values():
        if inspect.isclass(member) and member.__module__ == module.__name__:
            for attribute in vars(member).values():
                yield from _undecorated(attribute, module.__name__)
        else:
            yield from _undecorated(member, module.__name__)


def _undecorated(member: Any, module_name: str) -> Iterator[types.FunctionType]:
    member = getattr(member, "fget", member)
    member = getattr(member, "__func__", member)
    member = inspect.unwrap(member) if callable(member) else member
    if isinstance(member, types.FunctionType) and member.__module__ == module_name:
        yield member


def _with_literals(code: types.CodeType, literals: dict[str, str]) -> types.CodeType:
    def changed(constant: Any) -> Any:
        if isinstance(constant, str):
            return literals.get(constant, constant)
        if isinstance(constant, tuple):
            return tuple(changed(item) for item in constant)
        if isinstance(constant, types.CodeType):
            return _with_literals(constant, literals)
        return constant

    return code.replace(co_consts=tuple(changed(constant) for constant in code.co_consts))


