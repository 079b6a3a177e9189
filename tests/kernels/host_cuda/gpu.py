"""A GPU for torch whose memory is the host's: the Python side of the CUDA path runs on it as it is.

Tensors on it say that they lie on cuda:0 and refuse to be mixed with the host's; torch's own ops compute on the host,
ours launch the emulated kernels.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from types import ModuleType, SimpleNamespace
from typing import Any
from unittest import mock

import torch
from torch.utils._python_dispatch import TorchDispatchMode, return_and_correct_aliasing
from torch.utils._pytree import tree_leaves, tree_map

from megatron_synE.kernels import _native, selection
from tests.kernels.host_cuda.build import build, load

CUDA = torch.device("cuda", 0)
# Ops that wait for the GPU on a real one.
WAITING = (torch.ops.aten._local_scalar_dense.default, torch.ops.aten.nonzero.default)
_EXTENSION = "megatron_synE._kernels_cuda"


class GpuTensor(torch.Tensor):
    """Holds a tensor of the host. For torch's C++ part it is one of the host without data, for Python of the GPU."""

    host: torch.Tensor
    device = property(lambda self: CUDA)  # type: ignore[assignment]
    is_cuda = property(lambda self: True)  # type: ignore[assignment]
    is_cpu = property(lambda self: False)  # type: ignore[assignment]
    __torch_function__ = torch._C._disabled_torch_function_impl

    @staticmethod
    def __new__(cls, host: torch.Tensor) -> GpuTensor:
        layout = {"strides": host.stride(), "storage_offset": host.storage_offset(), "dtype": host.dtype}
        tensor = torch.Tensor._make_wrapper_subclass(cls, host.shape, **layout)  # type: ignore[attr-defined]
        tensor.host = host
        return tensor

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        return _run(func, args, kwargs or {})

    def data_ptr(self) -> int:
        return self.host.data_ptr()

    def untyped_storage(self) -> torch.UntypedStorage:
        return self.host.untyped_storage()

    def tolist(self) -> list:
        return self.cpu().tolist()

    def numpy(self) -> Any:
        raise TypeError("can't convert a tensor of the GPU to numpy")

    def __repr__(self) -> str:
        return f"{self.host}, on the emulated GPU"


class _Transfer(torch.autograd.Function):
    """A copy from the host to the GPU or back."""

    @staticmethod
    def forward(ctx, tensor: torch.Tensor) -> torch.Tensor:
        return tensor.host.clone() if isinstance(tensor, GpuTensor) else GpuTensor(tensor.detach().clone())

    @staticmethod
    def backward(ctx, gradient: torch.Tensor) -> torch.Tensor:
        return _Transfer.apply(gradient)


class EmulatedGpu(TorchDispatchMode):
    """Active while there is a GPU; `waits` are the names of the ops for which the host waited for it."""

    def __init__(self, module: ModuleType) -> None:
        super().__init__()
        self.module = module
        self.waits: list[str] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func in WAITING and any(isinstance(leaf, GpuTensor) for leaf in tree_leaves(args)):
            self.waits.append(str(func))
        return _run(func, args, kwargs or {}, self)

    def to(self, tensor: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        """torch.Tensor.to; transfers are found here, for torch's C++ part knows no second device."""
        target, dtype, non_blocking, _ = torch._C._nn._parse_to(*(a for a in args if not isinstance(a, torch.Tensor)),
                                                                **kwargs)  # fmt: skip
        if args and isinstance(args[0], torch.Tensor):
            target, dtype = args[0].device, args[0].dtype
        if target is not None and target.type in ("cpu", "cuda") and target.type != tensor.device.type:
            if target.type == "cpu" and not non_blocking:
                self.waits.append("copy to the host")
            tensor = _Transfer.apply(tensor)
        options = {"device": target} if target is not None and target.type == "meta" else {}
        return _TO(tensor, dtype=dtype or tensor.dtype, copy=kwargs.get("copy", False), **options)


_TO = torch.Tensor.to
_TENSOR = torch.tensor


def _tensor(data: Any, *, device: Any = None, requires_grad: bool = False, **options: Any) -> torch.Tensor:
    """torch.tensor, which does not ask the dispatch mode before it makes a tensor on the GPU."""
    made = _TENSOR(data, **options)
    return (made if device is None else made.to(device)).requires_grad_(requires_grad)


def _run(func, args, kwargs, gpu: EmulatedGpu | None = None):
    """`func` on host tensors; its results are on the GPU where an operand is, or where they are asked for."""
    tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, torch.Tensor)]
    on_gpu = any(isinstance(tensor, GpuTensor) for tensor in tensors)
    if func.namespace == "syne" and on_gpu:  # ours: the function that launches the kernels
        with gpu or nullcontext():
            return func._op_dk(torch._C.DispatchKey.CompositeExplicitAutograd, *args, **kwargs)
    if on_gpu and func is not torch.ops.aten.copy_.default:
        others = [t for t in tensors if not isinstance(t, GpuTensor) and t.dim() > 0]
        if others:
            raise RuntimeError(f"{func}: expected all tensors on one device, but {len(others)} are on the host")
    device = kwargs.get("device")
    if device is not None and torch.device(device).type in ("cpu", "cuda"):
        on_gpu = torch.device(device).type == "cuda"
        kwargs = {**kwargs, "device": torch.device("cpu")}
    host_args, host_kwargs = tree_map(lambda t: t.host if isinstance(t, GpuTensor) else t, (args, kwargs))
    results = func(*host_args, **host_kwargs)
    if not on_gpu:
        return results
    return return_and_correct_aliasing(
        func, args, kwargs, tree_map(lambda t: GpuTensor(t) if isinstance(t, torch.Tensor) else t, results)
    )


@contextmanager
def emulated_gpu(module: ModuleType | None = None, *, multiprocessors: int = 2) -> Iterator[EmulatedGpu]:
    """Inside the block there is one GPU, whose kernels are those of `module`, by default of csrc/cuda as it stands."""
    gpu = EmulatedGpu(module or load(build()))
    properties = SimpleNamespace(name="emulated", major=9, minor=0, multi_processor_count=multiprocessors,
                                 total_memory=2**36)  # fmt: skip
    stream = SimpleNamespace(cuda_stream=0)
    cuda = {
        "_lazy_init": lambda: None,
        "is_available": lambda: True,
        "device_count": lambda: 1,
        "current_device": lambda: 0,
        "device": lambda device: nullcontext(),
        "current_stream": lambda device=None: stream,
        "synchronize": lambda device=None: None,
        "get_device_capability": lambda device=None: (9, 0),
        "get_device_properties": lambda device=None: properties,
    }
    methods = {
        "to": gpu.to,
        "cuda": lambda tensor, *_, **__: gpu.to(tensor, "cuda"),
        "cpu": lambda tensor: gpu.to(tensor, "cpu"),
    }
    with ExitStack() as stack:
        stack.enter_context(mock.patch.dict(sys.modules, {_EXTENSION: gpu.module}))
        for name, stand_in in cuda.items():
            stack.enter_context(mock.patch.object(torch.cuda, name, stand_in))
        for name, method in methods.items():
            # A function, for an instance's attribute has to become a bound method.
            stack.enter_context(mock.patch.object(torch.Tensor, name, lambda *a, _call=method, **k: _call(*a, **k)))
        stack.enter_context(mock.patch.object(torch, "tensor", _tensor))
        _forget_choices()
        stack.callback(_forget_choices)
        stack.enter_context(gpu)
        yield gpu


def _forget_choices() -> None:
    _native.extension.cache_clear()
    _native.problem.cache_clear()
    selection._default.cache_clear()
