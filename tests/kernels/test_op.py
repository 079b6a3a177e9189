"""Ops that are called directly where nobody looks, and are torch's ops where somebody does."""

from __future__ import annotations

from importlib import import_module
from typing import Any

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from megatron_synE.kernels import add_rms_norm, rms_norm, swiglu
from megatron_synE.kernels.op import KernelOp, kernel_op

calls: list[str] = []


@kernel_op("syne_test::double")
def double(x: torch.Tensor, factor: float) -> torch.Tensor:
    calls.append("double")
    return x * (2 * factor)


@double.register_fake
def _(x, factor):
    return torch.empty_like(x)


def _save(ctx, inputs, output) -> None:
    ctx.factor = inputs[1]
    ctx.save_for_backward(inputs[0])


def _backward(ctx, gradient):
    return double(gradient, ctx.factor), None


double.register_autograd(_backward, setup_context=_save)


@kernel_op("syne_test::add_one_", mutates_args=("x",))
def add_one_(y: torch.Tensor, x: torch.Tensor) -> None:
    x += y


class Seen(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.names.append(func.name())
        return func(*args, **(kwargs or {}))


class Marked(torch.Tensor):
    pass


@pytest.fixture
def only_direct(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*inputs: Any) -> None:
        raise AssertionError("went through torch's dispatcher")

    monkeypatch.setattr(double, "_op", refuse)


@pytest.mark.usefixtures("only_direct")
def test_plain_calls_go_to_the_function_forward_and_backward() -> None:
    x = torch.tensor([1.0, 2.0], requires_grad=True)
    result = double(x, 3.0)
    result.backward(torch.tensor([1.0, 10.0]))
    assert result.tolist() == [6.0, 12.0] and x.grad is not None and x.grad.tolist() == [6.0, 60.0]
    with torch.no_grad():
        assert not double(x, 1.0).requires_grad
    assert double(torch.nn.Parameter(torch.ones(1)), 1.0).requires_grad


def test_a_mode_a_subclass_and_a_transform_see_the_op() -> None:
    with Seen() as seen:
        double(torch.ones(2), 1.0)
    assert "syne_test::double" in seen.names
    calls.clear()
    with FakeTensorMode():
        assert double(torch.ones(2), 1.0).shape == (2,)
    assert calls == []
    assert torch.equal(torch.vmap(lambda x: double(x, 1.0))(torch.ones(2, 3)), torch.full((2, 3), 2.0))
    assert torch.equal(double(torch.ones(2).as_subclass(Marked), 1.0), torch.full((2,), 2.0))


def test_compiled_code_holds_the_op_forward_and_backward() -> None:
    graphs: list[str] = []

    def keep(graph: torch.fx.GraphModule, inputs: Any) -> Any:
        graphs.append(graph.code)
        return graph

    x = torch.ones(3, requires_grad=True)
    result = torch.compile(lambda x: double(x, 2.0) + 1, backend=keep, fullgraph=True)(x)
    assert len(graphs) == 1 and "syne_test.double" in graphs[0]
    assert result.tolist() == [5.0] * 3
    weight = torch.ones(8)
    norm = torch.compile(lambda x: rms_norm(x, weight, 1e-5) + swiglu(torch.cat((x, x), -1)), backend="aot_eager")
    x = torch.randn(4, 8, requires_grad=True)
    torch.testing.assert_close(norm(x), rms_norm(x, weight, 1e-5) + swiglu(torch.cat((x, x), -1)))


def test_torchs_own_checks_hold() -> None:
    torch.library.opcheck(torch.ops.syne_test.double.default, (torch.ones(3, requires_grad=True), 2.0))


def test_a_second_derivative_is_refused_as_by_torch() -> None:
    x = torch.randn(4, 8, requires_grad=True)
    weight = torch.ones(8)
    (gradient,) = torch.autograd.grad(rms_norm(x, weight, 1e-5).square().sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match=r"syne::rms_norm_backward.*no autograd formula|autograd"):
        gradient.sum().backward()


def test_what_is_changed_in_place_has_a_new_version() -> None:
    x = torch.ones(2)
    version = x._version
    add_one_(torch.ones(2), x)
    assert x.tolist() == [2.0, 2.0] and x._version > version


def test_both_ways_give_the_same_bits(monkeypatch: pytest.MonkeyPatch) -> None:
    rms = import_module("megatron_synE.kernels.rms_norm")

    def run() -> list[torch.Tensor]:
        generator = torch.Generator().manual_seed(0)
        x, residual = (torch.randn(5, 33, generator=generator).bfloat16().requires_grad_() for _ in range(2))
        weight = torch.randn(33, generator=generator).bfloat16().requires_grad_()
        y, summed = add_rms_norm(x, residual, weight, 1e-5)
        (y.float().square().sum() + summed.float().sum()).backward()
        return [y.detach(), *(value.grad for value in (x, residual, weight) if value.grad is not None)]

    direct = run()
    monkeypatch.setattr(KernelOp, "__call__", lambda self, *inputs: self._op(*inputs))
    through_torch = run()
    assert isinstance(rms._add_rms_norm, KernelOp)
    assert len(direct) == 4 and all(torch.equal(a, b) for a, b in zip(direct, through_torch, strict=True))
