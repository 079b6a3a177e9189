"""AdamW on 16-bit state: the kernel against float64, the exactness of the parameter's two halves, and the optimizer."""

from __future__ import annotations

import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st

from megatron_synE.kernels import FusedAdamW, PrecisionAwareAdamW, adamw_, override, reference
from tests.kernels.oracle import devices, relative_error

pytestmark = pytest.mark.skipif(not devices(), reason="no compiled kernels were built")
HYPER = {"lr": 3e-3, "betas": (0.9, 0.95), "eps": 1e-8, "weight_decay": 0.1}
FP32, BF16 = torch.float32, torch.bfloat16


@pytest.mark.parametrize("device", devices())
@pytest.mark.parametrize("implementation", ["compiled", "reference"])
@pytest.mark.parametrize("parameter", ["fp32", "fp32 and copy", "bf16 and remainder"])
@pytest.mark.parametrize("dtypes", [(g, m, v) for g in (FP32, BF16) for m in (FP32, BF16) for v in (FP32, BF16)])
@pytest.mark.parametrize("count", [0, 1, 511, 513, 40009])
def test_every_format_equals_float64(count, dtypes, parameter, implementation, device):
    generator = torch.Generator().manual_seed(count)
    start, *values = (torch.randn(count, generator=generator) for _ in range(4))
    values[2] = values[2].square()
    grad, exp_avg, exp_avg_sq = (value.to(dtype) for value, dtype in zip(values, dtypes, strict=True))
    wide = [start.double(), grad.double(), exp_avg.double(), exp_avg_sq.double()]
    options = {"lr": 3e-3, "eps": 1e-8, "weight_decay": 0.1, "step": 3, "grad_scale": 0.3}
    reference.adamw(*wide, None, None, beta1=0.9, beta2=0.95, **options)

    param, model_param, remainder = start.to(device), None, None
    if parameter == "fp32 and copy":
        model_param = torch.empty(count, dtype=BF16, device=device)
    elif parameter == "bf16 and remainder":
        param, remainder = reference.split_fp32(param)
    moments = exp_avg.to(device), exp_avg_sq.to(device)
    with override("adamw", implementation):
        adamw_(param, grad.to(device), *moments, betas=(0.9, 0.95), model_param=model_param, remainder=remainder,
               **options)  # fmt: skip
    main = param if remainder is None else reference.join_fp32(param, remainder)
    assert main.dtype == FP32 and relative_error(main, wide[0]) <= 1e-6
    if model_param is not None:
        assert torch.equal(model_param, main.bfloat16())
    for actual, expected, dtype in zip(moments, wide[2:], dtypes[1:], strict=True):
        assert actual.dtype == dtype
        if dtype == FP32:
            assert relative_error(actual, expected) <= 1e-6
        else:  # rounded to the nearest: fp32 arithmetic decides otherwise only beside a tie
            differing = actual.cpu() != expected.float().bfloat16()
            assert differing.sum() <= 2 + 5e-3 * count
            torch.testing.assert_close(actual.cpu().double(), expected, rtol=2**-8, atol=1e-6)


def values_of(patterns: list[int]) -> torch.Tensor:
    return torch.tensor(patterns, dtype=torch.int64).to(torch.int32).view(FP32)


def bits_of(values: torch.Tensor) -> list[int]:
    return values.cpu().view(torch.int32).tolist()


TIES = [0x3F808000, 0x3F818000, 0xBF808000, 0xBF818000, 0x00008000, 0x80018000]
EXTREMES = [0x7F7FFFFF, 0xFF7FFFFF, 0x7F7F8000, 0x7F800000, 0xFF800000, 0, 0x80000000, 1, 0x80000001, 0x007FFFFF]
NANS = [0x7FFFFFFF, 0xFFFFFFFF, 0x7F800001, 0xFF800001, 0x7FC00000, 0xFFC00000]


@given(st.lists(st.integers(0, 2**32 - 1), min_size=1, max_size=64))
@example(TIES + EXTREMES + NANS)
def test_the_two_halves_are_exact_and_the_first_is_the_nearest(patterns):
    values = values_of(patterns)
    high, remainder = reference.split_fp32(values)
    is_nan = values.isnan()
    assert torch.equal(high.isnan(), is_nan)
    joined = reference.join_fp32(high, remainder)
    assert bits_of(joined[~is_nan]) == bits_of(values[~is_nan])
    # No other bf16 is nearer; half up may take the other neighbour where half to even takes its own.
    finite = values.bfloat16().isfinite()
    error, least = (abs(rounded[finite].double() - values[finite].double()) for rounded in (high, values.bfloat16()))
    assert torch.equal(error, least)


@pytest.mark.parametrize("device", devices())
@given(patterns=st.lists(st.integers(0, 2**32 - 1), min_size=1, max_size=64))
@example(patterns=TIES + EXTREMES + NANS)
def test_the_kernel_makes_the_same_halves(patterns, device):
    """A step of length zero takes each value apart and puts it together again."""
    expected = reference.split_fp32(values_of(patterns))
    halves = [half.to(device) for half in expected]
    zeros = torch.zeros(3, len(patterns), device=device).unbind(0)
    adamw_(halves[0], *zeros, remainder=halves[1], step=1, **{**HYPER, "lr": 0.0})
    for half, same in zip(halves, expected, strict=True):
        assert torch.equal(half.cpu().view(torch.int16), same.view(torch.int16))


@pytest.mark.parametrize("device", devices())
def test_a_nan_stays_one_in_the_upper_half(device):
    """Rounded as a number, the bits 7FFFFFFF would become -0."""
    bits = torch.tensor(NANS)
    remainder = bits.to(torch.int16).to(device)
    high = ((bits + 0x8000) >> 16).to(torch.int16).view(BF16).to(device)
    assert reference.join_fp32(high, remainder).isnan().all() and not high.isnan().all()
    zeros = torch.zeros(3, len(NANS), device=device).unbind(0)
    adamw_(high, *zeros, remainder=remainder, step=1, **HYPER)
    assert high.isnan().all() and reference.join_fp32(high, remainder).isnan().all()


@pytest.mark.parametrize("device", devices())
def test_the_kernel_splits_results_as_the_reference(device):
    """From fp32 main values and from halves the same step leaves the same fp32 values, halves as `split_fp32`."""
    generator = torch.Generator().manual_seed(4)
    main = torch.randn(300_000, generator=generator).to(device)
    high, remainder = reference.split_fp32(main)
    for step in range(1, 4):
        grad = torch.randn(main.shape, generator=generator).to(device)
        adamw_(main, grad, *torch.zeros(2, main.numel(), device=device).unbind(0), step=step, **HYPER)
        adamw_(high, grad, *torch.zeros(2, main.numel(), device=device).unbind(0), step=step, remainder=remainder,
               **HYPER)  # fmt: skip
    expected = reference.split_fp32(main)
    assert torch.equal(high, expected[0]) and torch.equal(remainder, expected[1])


def test_wrong_remainders_are_named():
    high, *moments = torch.zeros(4, dtype=BF16), *torch.zeros(3, 4).unbind(0)
    for remainder, words in ((torch.zeros(4), "int16"), (torch.zeros(5, dtype=torch.int16), "one shape")):
        with pytest.raises(ValueError, match=words):
            adamw_(high, *moments, remainder=remainder, step=1, **HYPER)
    with pytest.raises(ValueError, match="itself the model's"):
        adamw_(high, *moments, remainder=torch.zeros(4, dtype=torch.int16), model_param=high, step=1, **HYPER)


class Problem:
    """Two groups of bf16 weights, and the same gradients for every optimizer."""

    def __init__(self, **options) -> None:
        generator = torch.Generator().manual_seed(5)
        self.params = [torch.randn(shape, generator=generator).bfloat16() for shape in ((40, 7), (13,), (700, 3))]
        self.grads = [[torch.randn(p.shape, generator=generator) for p in self.params] for _ in range(6)]
        groups = [{"params": self.params[:1], "weight_decay": 0.1}, {"params": self.params[1:], "weight_decay": 0.0}]
        self.optimizer = PrecisionAwareAdamW(groups, lr=3e-3, betas=(0.9, 0.95), **options)

    def train(self, steps: range) -> None:
        for step in steps:
            for param, grad in zip(self.params, self.grads[step], strict=True):
                param.decoupled_grad = grad.clone()
            self.optimizer.step()

    def state(self) -> list[torch.Tensor]:
        found = [param.clone() for param in self.params]
        for param in self.params:
            found += [value.clone() for value in self.optimizer.state[param].values()]
        return found

    def main_params(self) -> list[torch.Tensor]:
        return [self.optimizer.get_unscaled_state(param, "master_param") for param in self.params]


@pytest.mark.parametrize("remainders", [True, False])
def test_main_parameters_equal_those_of_the_ordinary_optimizer_bit_for_bit(remainders):
    problem = Problem(store_param_remainders=remainders)
    params = [param.float() for param in problem.params]
    groups = [{"params": params[:1], "weight_decay": 0.1}, {"params": params[1:], "weight_decay": 0.0}]
    ordinary = torch.optim.AdamW(groups, lr=3e-3, betas=(0.9, 0.95))
    FusedAdamW.adopt(ordinary)
    ordinary.grad_scale = problem.optimizer.grad_scale = 0.7
    problem.train(range(6))
    for grads in problem.grads:
        for param, grad in zip(params, grads, strict=True):
            param.grad = grad
        ordinary.step()
    for ours, expected, model_param in zip(problem.main_params(), params, problem.params, strict=True):
        assert torch.equal(ours, expected)
        rounded = reference.split_fp32(expected)[0] if remainders else expected.bfloat16()
        assert torch.equal(model_param, rounded)
    assert [group["step"] for group in problem.optimizer.param_groups] == [6, 6]


def test_the_gradient_is_scaled():
    scaled, halved = Problem(), Problem()
    scaled.optimizer.grad_scale = 0.5
    halved.grads = [[grad * 0.5 for grad in grads] for grads in halved.grads]
    for problem in (scaled, halved):
        problem.train(range(3))
    assert all(torch.equal(a, b) for a, b in zip(scaled.state(), halved.state(), strict=True))


@pytest.mark.parametrize("remainders", [True, False])
@pytest.mark.parametrize("dtype", [FP32, BF16])
def test_a_restored_optimizer_goes_on_bit_for_bit(dtype, remainders):
    options = {"exp_avg_dtype": dtype, "exp_avg_sq_dtype": dtype, "store_param_remainders": remainders}
    first, second = Problem(**options), Problem(**options)
    first.train(range(3))
    saved = first.optimizer.state_dict()
    assert all(value.dtype == FP32 for state in saved["state"].values() for value in state.values())
    second.optimizer.load_state_dict(saved)
    for problem in (first, second):
        problem.train(range(3, 6))
    assert all(torch.equal(a, b) for a, b in zip(first.state(), second.state(), strict=True))


def test_main_values_can_be_set_before_the_first_step():
    problem = Problem()
    main = [param.float() + 1e-4 for param in problem.params]
    for param, value in zip(problem.params, main, strict=True):
        problem.optimizer.set_scaled_state(param, "master_param", value)
    assert all(torch.equal(a, b) for a, b in zip(problem.main_params(), main, strict=True))
    problem = Problem()
    problem.optimizer.initialize_state(problem.params[0])
    start = problem.optimizer.get_unscaled_state(problem.params[0], "master_param")
    assert torch.equal(start, problem.params[0].float())


def test_an_fp32_parameter_is_its_own_main_value():
    param = torch.ones(5)
    optimizer = PrecisionAwareAdamW([param], lr=0.1, use_decoupled_grad=False)
    param.grad = torch.ones(5)
    optimizer.step()
    assert param[0] < 0.95 and torch.equal(optimizer.get_unscaled_state(param, "master_param"), param)
    optimizer.set_scaled_state(param, "master_param", torch.full((5,), 3.0))
    assert torch.equal(param, torch.full((5,), 3.0))


@pytest.mark.parametrize(
    ("options", "words"),
    [({"exp_avg_dtype": torch.float16}, "exp_avg_dtype"), ({"adam_w_mode": False}, "weight decay"),
     ({"master_weight_dtype": torch.float16}, "fp32 main")],
)  # fmt: skip
def test_what_it_does_not_do_is_refused(options, words):
    with pytest.raises(ValueError, match=words):
        PrecisionAwareAdamW([torch.zeros(2)], **options)
