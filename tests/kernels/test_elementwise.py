"""RMSNorm, RoPE and SwiGLU against the reference in float64, forward and backward."""

from __future__ import annotations

from functools import partial

import pytest
import torch

from megatron_synE.kernels import (
    add_rms_norm,
    drop_until_backward,
    override,
    reference,
    rms_norm,
    rope_,
    rope_unpack,
    selection,
    swiglu,
)
from tests.kernels.oracle import check, devices

DTYPES = [torch.float32, torch.bfloat16]
SHAPES = [(1, 2), (3, 7), (5, 2, 33), (64, 128), (37, 515), (0, 16)]
pytestmark = pytest.mark.skipif(not devices(), reason="no compiled kernels were built")


def randn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("device", devices())
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES)
def test_rms_norm(shape, dtype, device):
    assert selection.choice("rms_norm", device).implementation == "compiled"
    inputs = [randn(*shape), 1 + 0.1 * randn(shape[-1], seed=1)]
    check(partial(rms_norm, eps=1e-5), partial(reference.rms_norm, eps=1e-5), inputs, dtype, device)


@pytest.mark.parametrize("device", devices())
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES)
def test_add_rms_norm(shape, dtype, device):
    inputs = [randn(*shape), randn(*shape, seed=2), 1 + 0.1 * randn(shape[-1], seed=1)]
    # The sum is rounded before the norm: with an input that has no rounding left, both orders agree in bf16 too.
    if dtype == torch.bfloat16:
        inputs[:2] = [(8 * t).round() / 8 for t in inputs[:2]]
    check(partial(add_rms_norm, eps=1e-5), partial(reference.add_rms_norm, eps=1e-5), inputs, dtype, device)


@pytest.mark.parametrize("device", devices())
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(1, 2), (3, 14), (5, 2, 66), (64, 256), (0, 16)])
def test_swiglu(shape, dtype, device):
    check(swiglu, reference.swiglu, [4 * randn(*shape)], dtype, device)


@pytest.mark.parametrize("device", devices())
@pytest.mark.parametrize("implementation", ["compiled", "reference"])
def test_swiglu_overwritten_and_dropped_gives_the_same_bits(implementation, device):
    """As the MLP uses it: the activation freed until the backward pass, the gradient in the place of the input."""
    values, weight = randn(3, 5, 14).float().to(device), randn(7, 4).float().to(device)

    def gradients(in_place):
        x, w = values.clone().requires_grad_(), weight.clone().requires_grad_()
        projected = x * 2
        activated = swiglu(projected, overwrite=in_place)
        output = activated @ w
        if in_place:
            drop_until_backward(activated, projected, output)
            assert activated.untyped_storage().nbytes() == 0
        loss = output.square().sum()
        loss.backward(retain_graph=True)
        return x.grad, w.grad, loss

    with override("swiglu", implementation):
        *expected, _ = gradients(False)
        *actual, loss = gradients(True)
        assert all(torch.equal(a, e) for a, e in zip(actual, expected, strict=True))
        if implementation == "compiled":
            with pytest.raises(RuntimeError, match="modified by an inplace operation"):
                loss.backward()


@pytest.mark.parametrize("device", devices())
def test_swiglu_saturates_without_nan(device):
    x = torch.tensor([[-1e4, -90.0, 90.0, 1e4, 1.0, 1.0, 1.0, 1.0]], device=device, requires_grad=True)
    y = swiglu(x)
    y.sum().backward()
    expected = torch.tensor([[0.0, 0.0, 90.0, 1e4]], device=device)
    torch.testing.assert_close(y.detach(), expected, rtol=1e-6, atol=1e-6)
    assert x.grad is not None and x.grad.isfinite().all()


@pytest.mark.parametrize("device", devices())
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(1, 1, 3, 2), (13, 2, 4, 6), (50, 3, 10, 64), (0, 1, 3, 8)])
def test_rope(shape, dtype, device):
    tokens, _, heads, dim = shape
    angles = torch.outer(torch.arange(64.0), 500000.0 ** (-torch.arange(0, dim, 2) / dim))
    cos, sin = angles.cos(), angles.sin()
    positions = torch.randint(0, 64, (tokens,), generator=torch.Generator().manual_seed(3))

    def ours(packed):
        # The op works in place; a leaf that requires grad cannot be changed, so give it a copy.
        return rope_(packed.clone(), cos.to(device), sin.to(device), positions.to(device), heads - 1)

    def oracle(packed):
        return reference.rope(packed, cos.double(), sin.double(), positions, heads - 1)

    check(ours, oracle, [randn(*shape)], dtype, device)


@pytest.mark.parametrize("device", devices())
def test_rope_restarts_and_works_in_place(device):
    """Two documents packed into one sequence get what each gets alone; value heads stay untouched."""
    angles = torch.outer(torch.arange(16.0), torch.tensor([1.0, 0.1]))
    cos, sin = angles.cos().to(device), angles.sin().to(device)
    packed = randn(12, 2, 4, 4).float().to(device)
    alone = [rope_(part.clone(), cos, sin, torch.arange(len(part), device=device), 3) for part in packed.split([7, 5])]
    positions = torch.cat((torch.arange(7), torch.arange(5))).to(device)
    before = packed.clone()
    result = rope_(packed, cos, sin, positions, 3)
    assert result.data_ptr() == packed.data_ptr()
    assert torch.equal(result, torch.cat(alone))
    assert torch.equal(result[:, :, 3], before[:, :, 3])


@pytest.mark.parametrize("device", devices())
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    "shape", [(1, 1, 3, 2), (13, 2, 4, 6), (7, 3, 6, 22), (50, 3, 10, 64), (9, 1, 3, 264), (0, 1, 3, 8)]
)
def test_rope_that_unpacks(shape, dtype, device):
    tokens, _, _, dim = shape
    angles = torch.outer(torch.arange(64.0), 500000.0 ** (-torch.arange(0, dim, 2) / dim))
    cos, sin = angles.cos(), angles.sin()
    positions = torch.randint(0, 64, (tokens,), generator=torch.Generator().manual_seed(3))

    def ours(packed):
        return rope_unpack(packed.clone(), cos.to(device), sin.to(device), positions.to(device))

    def oracle(packed):
        rotated = reference.rope(packed, cos.double(), sin.double(), positions, shape[2] - 1)
        return rotated[:, :, :-2], rotated[:, :, -2], rotated[:, :, -1]

    check(ours, oracle, [randn(*shape)], dtype, device)


@pytest.mark.parametrize("device", devices())
@pytest.mark.parametrize("dtype", DTYPES)
def test_rope_of_heads_that_are_not_aligned(dtype, device):
    """A tensor may begin at any element; 16-byte accesses would not do then."""
    angles = randn(5, 8).float().to(device)
    positions = torch.arange(5, device=device)
    memory = randn(5 * 2 * 4 * 16 + 1).to(device, dtype)
    odd, even = memory[1:].view(5, 2, 4, 16), memory[1:].clone().view(5, 2, 4, 16)
    expected = reference.rope(even.cpu(), angles.cpu(), angles.cpu(), positions.cpu(), 3)
    parts = [rope_unpack(heads.clone() if heads is even else heads, angles, angles, positions) for heads in (even, odd)]
    assert all(torch.equal(a, b) for a, b in zip(*parts, strict=True))
    together = torch.cat((parts[0][0], parts[0][1].unsqueeze(2), parts[0][2].unsqueeze(2)), dim=2)
    torch.testing.assert_close(together.cpu(), expected)
    assert torch.equal(rope_(even, angles, angles, positions, 3), together)


def test_the_op_that_unpacks_has_shapes_without_values():
    """It runs on a GPU only; "meta" shows what its fakes say, forward and backward."""
    packed = torch.empty(6, 2, 5, 8, device="meta", requires_grad=True)
    tables = (torch.empty(9, 4, device="meta"),) * 2
    parts = torch.ops.syne.rope_unpack(packed, *tables, torch.empty(6, dtype=torch.int64, device="meta"))
    assert [part.shape for part in parts] == [(6, 2, 3, 8), (6, 2, 8), (6, 2, 8)]
    (gradient,) = torch.autograd.grad(parts, packed, [torch.empty_like(part) for part in parts])
    assert gradient.shape == packed.shape


@pytest.mark.parametrize("device", devices())
def test_non_contiguous_inputs(device):
    x = randn(9, 5, 32).float().to(device)
    weight = torch.ones(32, device=device)
    for view in (x.transpose(0, 1), x[:, ::2]):
        assert torch.equal(rms_norm(view, weight, 1e-5), rms_norm(view.contiguous(), weight, 1e-5))
        assert torch.equal(swiglu(view), swiglu(view.contiguous()))
    with pytest.raises(ValueError, match="contiguous"):
        angles = torch.ones(4, 2, device=device)
        positions = torch.zeros(9, dtype=torch.int64, device=device)
        rope_(x[:, :4, :4].unsqueeze(1).expand(9, 2, 4, 4), angles, angles, positions, 3)


def test_bad_arguments_are_named():
    with pytest.raises(ValueError, match="weight"):
        rms_norm(torch.ones(2, 4), torch.ones(3), 1e-5)
    with pytest.raises(ValueError, match="dtype"):
        rms_norm(torch.ones(2, 4), torch.ones(4, dtype=torch.bfloat16), 1e-5)
    with pytest.raises(ValueError, match="residual"):
        add_rms_norm(torch.ones(2, 4), torch.ones(3, 4), torch.ones(4), 1e-5)
    with pytest.raises(ValueError, match="even"):
        swiglu(torch.ones(2, 5))


@pytest.mark.parametrize("elsewhere", ["cos", "sin", "positions"])
def test_rope_refuses_operands_of_two_devices(elsewhere):
    operands = {"cos": torch.ones(4, 2), "sin": torch.ones(4, 2), "positions": torch.zeros(3, dtype=torch.int64)}
    operands[elsewhere] = operands[elsewhere].to("meta")
    with pytest.raises(ValueError, match=f"{elsewhere} is on meta and packed on cpu"):
        rope_(torch.ones(3, 1, 3, 4), *operands.values(), 2)


def test_other_dtypes_go_to_the_reference_and_pass_gradcheck():
    x, weight = randn(3, 6).requires_grad_(), randn(6, seed=1).requires_grad_()
    assert torch.autograd.gradcheck(partial(rms_norm, eps=1e-5), (x, weight))
    assert torch.autograd.gradcheck(swiglu, (x,))


def test_override_runs_the_reference():
    x, weight = randn(3, 6).float(), torch.ones(6)
    with override("rms_norm", "reference"):
        assert selection.choice("rms_norm", "cpu").implementation == "reference"
        assert torch.equal(rms_norm(x, weight, 1e-5), reference.rms_norm(x, weight, 1e-5))
    assert selection.choice("rms_norm", "cpu").reason != "overridden"


@pytest.mark.parametrize("op", ["rms_norm", "add_rms_norm", "swiglu"])
def test_torch_library_registration(op):
    """Schema, fake tensors and autograd registration, as torch's own checker sees them."""
    x, weight = torch.randn(4, 8, requires_grad=True), torch.randn(8, requires_grad=True)
    arguments = {
        "rms_norm": (x, weight, 1e-5),
        "add_rms_norm": (x, torch.randn(4, 8, requires_grad=True), weight, 1e-5),
        "swiglu": (x,),
    }[op]
    torch.library.opcheck(getattr(torch.ops.syne, op).default, arguments)
