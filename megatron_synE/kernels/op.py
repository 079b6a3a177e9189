"""Ops that torch knows, without torch's price where nothing asks for it.

A call of a `torch.library.custom_op` goes through Python code of torch's several times, forward and backward, which can
take longer than the kernel. That code is there for compilers, tensors without values, tensor subclasses and dispatch
modes. Where none of them is at work, the function that implements the op is called, inside a plain
`torch.autograd.Function` where a gradient is wanted. `benchmarks/op_overhead.py` has the figures.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import torch

_PLAIN = (torch.Tensor, torch.nn.Parameter)


def kernel_op(name: str, *, mutates_args: tuple[str, ...] = ()) -> Callable[[Callable[..., Any]], KernelOp]:
    """Decorator with the meaning of `torch.library.custom_op(name, mutates_args=…)`, positional arguments only."""
    return lambda implementation: KernelOp(name, implementation, mutates_args)


class KernelOp:
    """An op of `torch.ops` that is fast to call. `register_fake` and `register_autograd` are torch's."""

    def __init__(self, name: str, implementation: Callable[..., Any], mutates_args: tuple[str, ...]) -> None:
        self._implementation = implementation
        self._registered = torch.library.custom_op(name, implementation, mutates_args=mutates_args)
        namespace, _, short = name.partition("::")
        self._op: Any = getattr(getattr(torch.ops, namespace), short).default
        parameters = list(inspect.signature(implementation).parameters)
        self._mutated = [parameters.index(argument) for argument in mutates_args]
        self._function: type[torch.autograd.Function] | None = None
        self.register_fake = self._registered.register_fake

    def register_autograd(self, backward: Callable[..., Any], *, setup_context: Callable[..., None]) -> None:
        """As torch's: `setup_context(ctx, inputs, output)`, then `backward(ctx, *gradients)`."""
        self._registered.register_autograd(backward, setup_context=setup_context)
        implementation = self._implementation

        class Direct(torch.autograd.Function):
            @staticmethod
            def forward(ctx, *inputs):
                output = implementation(*inputs)
                setup_context(ctx, inputs, output)
                return output

        Direct.backward = staticmethod(backward)  # type: ignore[method-assign]
        self._function = Direct

    def __call__(self, *inputs: Any) -> Any:
        """The op's result."""
        if torch.compiler.is_compiling() or _is_watched():
            return self._op(*inputs)
        wants_gradient = False
        for value in inputs:
            if isinstance(value, torch.Tensor):
                if type(value) not in _PLAIN or value.is_meta:
                    return self._op(*inputs)
                wants_gradient = wants_gradient or value.requires_grad
        if not (wants_gradient and torch.is_grad_enabled()):
            result = self._implementation(*inputs)
            for position in self._mutated:
                torch.autograd.graph.increment_version(inputs[position])
            return result
        if self._function is None:
            return self._op(*inputs)  # torch says what has no gradient
        return self._function.apply(*inputs)


def _is_watched() -> bool:
    """Whether a dispatch mode (fake tensors, tracing) or a functorch transform looks at every op."""
    return torch._C._len_torch_dispatch_stack() > 0 or torch._C._are_functorch_transforms_active()
