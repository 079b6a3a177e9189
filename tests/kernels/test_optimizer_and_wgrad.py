"""AdamW, gradient norm and weight-gradient accumulation against torch."""

from __future__ import annotations

import pytest
import torch

from megatron_synE.kernels import (
    AdamWBuffers,
    FusedAdamW,
    adamw_,
    adamw_all_,
    add_to_main_grad,
    l2_norm,
    override,
    reference,
    scale_,
    sum_of_squares,
    wgrad_gemm_accum_fp32,
)
from megatron_synE.kernels.weight_gradient import _add_product, adds_products_in_fp32
from tests.kernels.oracle import devices, relative_error

pytestmark = pytest.mark.skipif(not devices(), reason="no compiled kernels were built")
HYPER = {"lr": 3e-3, "betas": (0.9, 0.95), "eps": 1e-8, "weight_decay": 0.1}


@pytest.mark.parametrize("device", devices())
@pytest.mark.parametrize("implementation", ["compiled", "reference"])
@pytest.mark.parametrize("count", [0, 1, 1000, 70001])
def test_adamw_equals_torch_over_five_steps(count, implementation, device):
    generator = torch.Generator().manual_seed(0)
    start = torch.randn(count, generator=generator)
    expected = start.double().clone().requires_grad_()
    optimizer = torch.optim.AdamW([expected], **HYPER)
    param, exp_avg, exp_avg_sq = start.to(device).clone(), *torch.zeros(2, count, device=device).unbind(0)
    model_param = torch.empty(count, dtype=torch.bfloat16, device=device)
    for step in range(1, 6):
        grad = torch.randn(count, generator=generator)
        expected.grad = grad.double() * 0.5
        optimizer.step()
        with override("adamw", implementation):
            moments = (exp_avg, exp_avg_sq)
            adamw_(param, grad.to(device), *moments, **HYPER, step=step, grad_scale=0.5, model_param=model_param)
    assert relative_error(param, expected) <= 1e-6
    assert torch.equal(model_param, param.bfloat16())


@pytest.mark.parametrize("device", devices())
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("count", [0, 1, 12345, 300000])
def test_sum_of_squares_and_scale(count, dtype, device):
    values = torch.randn(count, generator=torch.Generator().manual_seed(1)).to(dtype)
    expected = float(values.double().square().sum())
    assert sum_of_squares([values.to(device)]).item() == pytest.approx(expected, rel=1e-6)
    scaled = values.float().to(device).clone()
    scale_([scaled], 0.25)
    assert torch.equal(scaled.cpu(), values.float() * 0.25)


@pytest.mark.parametrize("device", devices())
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("tokens", "inputs", "outputs"), [(1, 1, 1), (33, 17, 29), (64, 513, 5000), (0, 4, 4)])
def test_weight_gradient(tokens, inputs, outputs, dtype, device):
    generator = torch.Generator().manual_seed(2)
    x, dy = (torch.randn(tokens, n, generator=generator).to(dtype) for n in (inputs, outputs))
    start = torch.randn(outputs, inputs, generator=generator)
    expected = start.double() + dy.double().t() @ x.double()
    main_grad = start.to(device).clone()
    wgrad_gemm_accum_fp32(x.to(device), dy.to(device), main_grad)
    plain = start.clone()
    reference.accumulate_weight_gradient(x, dy, plain)
    allowed = 1e-5 if dtype == torch.float32 else 2 * relative_error(plain, expected) + 1e-6
    assert relative_error(main_grad, expected) <= allowed


@pytest.fixture
def a_fresh_probe():
    adds_products_in_fp32.cache_clear()
    yield
    adds_products_in_fp32.cache_clear()


def fp32_addmm(addend, left, right, *, out_dtype, out):
    """torch.addmm as CUDA has it, in plain torch."""
    assert out is addend and out_dtype == out.dtype == torch.float32 and left.dtype == right.dtype == torch.bfloat16
    return out.add_(left.float() @ right.float())


def rounding_addmm(addend, left, right, *, out_dtype, out):
    return out.add_((left @ right).to(out_dtype))


def test_a_torch_without_the_product_is_found_out(a_fresh_probe, monkeypatch):
    """A CPU has none, older ones do not know the argument, and one that rounds would be worse than none."""
    probe, cpu = adds_products_in_fp32, torch.device("cpu")
    assert not probe(cpu, torch.bfloat16)
    of_old_torch = lambda addend, left, right, *, out: out  # noqa: E731
    for addmm, expected in ((of_old_torch, False), (rounding_addmm, False), (fp32_addmm, True)):
        probe.cache_clear()
        monkeypatch.setattr(torch, "addmm", addmm)
        assert probe(cpu, torch.bfloat16) == expected


@pytest.mark.parametrize("device", devices())
def test_the_weight_gradient_in_one_product_is_not_rounded(device, a_fresh_probe, monkeypatch):
    if device == "cpu":
        pytest.skip("on a CPU, tiles of the product are added while they are in cache")
    monkeypatch.setattr(torch, "addmm", fp32_addmm)
    generator = torch.Generator().manual_seed(8)
    x, dy = (torch.randn(2, 32, n, generator=generator).bfloat16() for n in (17, 29))
    start = torch.randn(29, 17, generator=generator)
    main_grad = start.to(device)
    wgrad_gemm_accum_fp32(x.to(device), dy.to(device), main_grad)
    expected = start.double() + dy.flatten(0, 1).double().t() @ x.flatten(0, 1).double()
    assert relative_error(main_grad, expected) <= 1e-6


def test_the_shapes_of_the_product_are_those_that_torch_takes():
    """On "meta" as on a GPU: fp32 [O, I] += bf16 [O, N] @ bf16 [N, I]."""
    main_grad = torch.empty(29, 17, device="meta")
    x, dy = (torch.empty(32, n, device="meta", dtype=torch.bfloat16) for n in (17, 29))
    _add_product(main_grad, dy.t(), x)
    with pytest.raises(RuntimeError):
        _add_product(main_grad, dy, x)


@pytest.mark.parametrize("device", devices())
def test_add_to_main_grad(device):
    weight = torch.nn.Parameter(torch.zeros(8, 4, dtype=torch.bfloat16, device=device))
    gradient = torch.randn(8, 4, device=device).bfloat16()
    weight.main_grad = torch.ones(8, 4, device=device)
    assert add_to_main_grad(weight, gradient, torch.tensor(2.0, device=device)) is None
    assert torch.equal(weight.main_grad, 1 + 2 * gradient.float())
    weight.grad_added_to_main_grad, weight.zero_out_wgrad = False, True
    placeholder = add_to_main_grad(weight, gradient)
    assert weight.grad_added_to_main_grad and placeholder.abs().sum() == 0


def test_fused_adamw_takes_over_an_optimizer_in_mid_run():
    """Three steps of torch's AdamW, then three of ours on the same state, equal six of torch's."""
    generator = torch.Generator().manual_seed(3)
    start = [torch.randn(shape, generator=generator) for shape in ((40, 7), (13,))]
    grads = [[torch.randn(t.shape, generator=generator) for t in start] for _ in range(6)]

    def train(takes_over: bool) -> list[torch.Tensor]:
        params = [t.clone().requires_grad_() for t in start]
        groups = [{"params": params[:1], "weight_decay": 0.1}, {"params": params[1:], "weight_decay": 0.0}]
        optimizer = torch.optim.AdamW(groups, lr=3e-3, betas=(0.9, 0.95))
        for step, step_grads in enumerate(grads):
            if takes_over and step == 3:
                FusedAdamW.adopt(optimizer)
            for param, grad in zip(params, step_grads, strict=True):
                param.grad = grad.clone()
            optimizer.step()
        assert all(float(optimizer.state[p]["step"]) == 6 for p in params)
        return [p.detach() for p in params]

    for ours, torchs in zip(train(True), train(False), strict=True):
        assert relative_error(ours, torchs) <= 1e-6


def test_fused_adamw_refuses_what_it_does_not_do():
    optimizer = torch.optim.AdamW([torch.zeros(2, requires_grad=True)], amsgrad=True)
    with pytest.raises(ValueError, match="amsgrad"):
        FusedAdamW.adopt(optimizer)


def test_bad_arguments_are_named():
    tensors = [torch.zeros(4) for _ in range(4)]
    with pytest.raises(ValueError, match="one shape"):
        adamw_(*tensors[:3], torch.zeros(5), **HYPER, step=1)
    with pytest.raises(ValueError, match="step"):
        adamw_(*tensors, **HYPER, step=0)
    with pytest.raises(ValueError, match="main_grad"):
        wgrad_gemm_accum_fp32(torch.ones(2, 3), torch.ones(2, 4), torch.zeros(4, 3, dtype=torch.bfloat16))


def state_of(count, generator, device, *, offset=0):
    """A bf16 parameter with its remainder, gradient and bf16 moments, `offset` elements into their memory."""
    values = [torch.randn(count + offset, generator=generator) for _ in range(4)]
    values[3] = values[3].square()
    halves = reference.split_fp32(values[0])
    tensors = [*halves, *(value.bfloat16() for value in values[1:])]
    param, remainder, grad, *moments = (t.to(device)[offset:] for t in tensors)
    return AdamWBuffers(param, grad, *moments, remainder=remainder)


def fp32_state_of(count, generator, device, *, with_copy):
    values = [torch.randn(count, generator=generator) for _ in range(4)]
    param, grad, exp_avg, exp_avg_sq = (t.to(device) for t in (*values[:3], values[3].square()))
    copy = torch.empty(count, dtype=torch.bfloat16, device=device) if with_copy else None
    return AdamWBuffers(param, grad, exp_avg, exp_avg_sq, model_param=copy)


def copied(buffers):
    return AdamWBuffers(*(None if t is None else t.clone() for t in buffers))


@pytest.mark.parametrize("device", devices())
def test_many_parameters_in_one_call_have_the_bits_of_one_call_each(device):
    """Of different formats and sizes, more than one table of a GPU's launch holds, aligned and not."""
    generator = torch.Generator().manual_seed(5)
    sizes = [0, 1, 7, 8, 9, 16383, 16384, 16385, 33000, *range(20, 90)]
    together = [state_of(n, generator, device, offset=n % 3) for n in sizes]
    together += [fp32_state_of(n, generator, device, with_copy=bool(n % 2)) for n in sizes]
    alone = [copied(buffers) for buffers in together]
    adamw_all_(together, **HYPER, step=2, grad_scale=0.5)
    for ours, single in zip(together, alone, strict=True):
        # A copy of a slice is aligned, so this compares wide accesses with narrow ones too.
        adamw_(*single[:4], model_param=single.model_param, remainder=single.remainder, **HYPER, step=2, grad_scale=0.5)
        assert all(a is None or torch.equal(a, b) for a, b in zip(ours, single, strict=True))


@pytest.mark.parametrize("device", devices())
def test_a_gradient_scale_may_stay_on_the_device(device):
    generator = torch.Generator().manual_seed(6)
    for first in (state_of(1000, generator, device), fp32_state_of(1000, generator, device, with_copy=False)):
        second = copied(first)
        adamw_all_([first], **HYPER, step=1, grad_scale=0.25)
        adamw_all_([second], **HYPER, step=1, grad_scale=torch.tensor(0.25, device=device))
        assert all(a is None or torch.equal(a, b) for a, b in zip(first, second, strict=True))


@pytest.mark.parametrize("device", devices())
def test_norm_and_scale_of_many_tensors(device):
    generator = torch.Generator().manual_seed(7)
    sizes = [0, 1, 5, 8, 16384, 16385, 40000, *range(20, 160)]
    values = [torch.randn(n + n % 3, generator=generator).to(device)[n % 3 :] for n in sizes]
    values += [value.bfloat16() for value in values[:20]] + [values[6].view(200, 200).t()]
    expected = sum(float(v.double().square().sum()) for v in values) ** 0.5
    norm = l2_norm(values)
    assert norm.shape == (1,) and norm.dtype == torch.float32
    assert norm.item() == pytest.approx(expected, rel=1e-6)
    assert torch.equal(norm, l2_norm(values))
    scaled = [value.clone() for value in values]
    scale_(scaled, 0.3)
    assert all(torch.equal(s, v * 0.3) for s, v in zip(scaled, values, strict=True))


@pytest.mark.parametrize("device", devices())
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_what_is_not_finite_reaches_the_norm(bad, device):
    for place in (0, 70000):
        values = torch.zeros(70001)
        values[place] = bad
        assert not l2_norm([torch.ones(3).to(device), values.to(device)]).isfinite().item()
