"""8-bit products against float64, within bounds that follow from the formats."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from megatron_synE.kernels import fp8, selection
from megatron_synE.kernels.fp8 import (
    E4M3,
    E5M2,
    Quantized,
    largest_magnitude,
    quantize,
    quantize_both_ways,
    quantize_transposed,
    scale_of,
    scaled_product,
)
from megatron_synE.model.fp8_linear import _Fp8Linear
from tests.helpers.host_waits import HostWaits
from tests.kernels.oracle import devices

# Of each format: half a unit in the last place, relative; half the distance of subnormal numbers.
ROUNDING = {E4M3: (2.0**-4, 2.0**-10), E5M2: (2.0**-3, 2.0**-17)}
BF16_ROUNDING, FP32_ROUNDING = 2.0**-8, 2.0**-24


def error_of_operand(exact: torch.Tensor, quantized: Quantized) -> torch.Tensor:
    """Largest error of each element: relative, or that of a subnormal number in the scale's unit."""
    relative, subnormal = ROUNDING[quantized.values.dtype]
    return torch.maximum(relative * exact.abs(), subnormal * quantized.unit.double())


def matrix(seed: int, rows: int, columns: int, magnitude: float, outlier: float) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    values = torch.randn(rows, columns, generator=generator) * magnitude
    values[rows // 2, columns // 3] *= outlier
    return values.bfloat16()


@pytest.mark.parametrize("left_dtype", [E4M3, E5M2])
@pytest.mark.parametrize(
    "sizes, magnitudes, outlier",
    [
        ((64, 48, 96), (1.0, 0.02), 1.0),
        ((16, 16, 16), (1e4, 1e-6), 1.0),
        ((48, 112, 64), (1e-12, 3.0), 1000.0),
        ((32, 16, 512), (1e30, 1e-30), 30.0),
    ],
)
def test_product_is_within_the_formats_rounding(
    left_dtype: torch.dtype, sizes: tuple[int, int, int], magnitudes: tuple[float, float], outlier: float
) -> None:
    m, n, k = sizes
    left, right = matrix(1, m, k, magnitudes[0], outlier), matrix(2, n, k, magnitudes[1], 1.0)
    quantized_left, quantized_right = quantize(left, left_dtype), quantize(right, E4M3)
    product = scaled_product(quantized_left, quantized_right)
    a, b = left.double(), right.double()
    da, db = error_of_operand(a, quantized_left), error_of_operand(b, quantized_right)
    operands = a.abs() @ db.t() + da @ b.abs().t() + da @ db.t()
    largest_sum = (a.abs() + da) @ (b.abs() + db).t()
    exact = a @ b.t()
    bound = operands + k * FP32_ROUNDING * largest_sum + BF16_ROUNDING * (exact.abs() + operands)
    assert product.dtype == torch.bfloat16
    assert ((product.double() - exact).abs() <= bound).all()


@pytest.mark.parametrize("dtype", [E4M3, E5M2])
def test_scale_is_the_largest_power_of_two_that_fits(dtype: torch.dtype) -> None:
    largest = torch.finfo(dtype).max
    for magnitude in (1.0, 447.0, 448.0, 450.0, largest, 7 * 2.0**124, 3e38, 1e-20, 2.0**-7 * 1.75):
        scale = float(scale_of(torch.tensor(magnitude), dtype))
        assert math.frexp(scale)[0] == 0.5
        assert magnitude * scale <= largest < 2 * magnitude * scale


def test_numbers_that_are_8_bit_numbers_come_through_exactly() -> None:
    left = torch.tensor([[0.5, -448.0, 16.0, 0.0]]).bfloat16()
    right = torch.tensor([[2.0, 1.0, -3.0, 7.0], [0.25, 0.0, 0.0, 1.0]]).bfloat16()
    assert scaled_product(quantize(left, E4M3), quantize(right, E4M3)).tolist() == [[-496.0, 0.125]]


def test_a_transposed_matrix_keeps_its_numbers() -> None:
    quantized = quantize(matrix(3, 32, 48, 5.0, 1.0), E4M3)
    turned = quantized.transposed()
    assert turned.values.is_contiguous()
    assert torch.equal(turned.values.float(), quantized.values.float().t())


def every_bf16() -> torch.Tensor:
    """All bit patterns, in an odd shape: 65,536 = 241 * 272 - 16."""
    patterns = torch.arange(241 * 272, dtype=torch.int32).bitwise_and(0xFFFF).sub(0x8000)
    return patterns.to(torch.int16).view(torch.bfloat16).view(241, 272)


def adversarial_fp32(dtype: torch.dtype) -> torch.Tensor:
    """Of all numbers of the format and the middles between neighbours: themselves and the next ones in fp32."""
    codes = torch.arange(256, dtype=torch.uint8).view(dtype).float()
    finite = codes[codes.isfinite()].unique()
    beyond = finite[-1] + (finite[-1] - finite[-2]) / 2
    points = torch.cat((finite, (finite[1:] + finite[:-1]) / 2, torch.stack((beyond, -beyond))))
    up, down = (torch.nextafter(points, torch.full_like(points, end)) for end in (math.inf, -math.inf))
    ends = torch.tensor([0.0, -0.0, math.nan, math.inf, -math.inf, 3.4e38, -3.4e38, 1e-45, -1e-45])
    return torch.cat((points, up, down, ends))


def by_torch(values: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """torch's own conversion; what is too large for e4m3 becomes its largest number, not nan as in older torch."""
    largest = torch.finfo(E4M3).max
    return (values.clamp(-largest, largest) if dtype == E4M3 else values).to(dtype)


def magnitude_for(scale: float, dtype: torch.dtype) -> torch.Tensor:
    """One whose scale is that: a power of two, 0 or inf."""
    magnitude = torch.tensor({0.0: math.inf, math.inf: math.nan}.get(scale) or torch.finfo(dtype).max / scale)
    assert float(scale_of(magnitude, dtype)) == scale
    return magnitude


def same_8_bit_numbers(found: torch.Tensor, expected: torch.Tensor) -> bool:
    """To the bit, but for the sign and the fraction of what is not a number."""
    found, expected = found.cpu(), expected.cpu()
    either = expected.float().isnan()
    assert torch.equal(found.float().isnan(), either)
    return torch.equal(found.view(torch.uint8)[~either], expected.view(torch.uint8)[~either])


@pytest.mark.parametrize("device", devices())
@pytest.mark.parametrize("dtype", [E4M3, E5M2])
@pytest.mark.parametrize("scale", [0.0, 2.0**-100, 2.0**-3, 1.0, 2.0**7, 2.0**108, math.inf])
def test_all_bf16_numbers_become_what_torch_makes_of_them(dtype: torch.dtype, scale: float, device: str) -> None:
    assert selection.choice("fp8", device).implementation == ("compiled" if device == "cuda" else "reference")
    matrix, magnitude = every_bf16(), magnitude_for(scale, dtype)
    expected = by_torch(matrix * torch.tensor(scale).bfloat16(), dtype)
    straight, transposed = quantize_both_ways(matrix.to(device), dtype, magnitude.to(device))
    for quantized in (straight, transposed):
        assert float(quantized.unit.cpu()) == float(torch.tensor(scale).reciprocal())
    assert same_8_bit_numbers(straight.values, expected)
    assert same_8_bit_numbers(transposed.values, expected.t())


@pytest.mark.parametrize("device", devices())
@pytest.mark.parametrize("dtype", [E4M3, E5M2])
@pytest.mark.parametrize("scale", [2.0**-40, 1.0, 2.0**60])
def test_fp32_numbers_beside_the_middles_are_rounded_as_torch_does(
    dtype: torch.dtype, scale: float, device: str
) -> None:
    values = adversarial_fp32(dtype) / scale
    matrix = torch.cat((values, values[: -len(values) % 8])).view(-1, 8)
    expected = by_torch(matrix * scale, dtype)
    magnitude = magnitude_for(scale, dtype).to(device)
    assert same_8_bit_numbers(quantize(matrix.to(device), dtype, magnitude).values, expected)
    assert same_8_bit_numbers(quantize_transposed(matrix.to(device), dtype, magnitude).values, expected.t())


@pytest.mark.parametrize("device", devices())
@pytest.mark.parametrize("element", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", [(16, 256), (260, 136), (129, 257), (7, 5), (1, 1), (0, 16), (16, 0)])
@pytest.mark.parametrize("offset", [0, 1])
def test_a_matrix_is_quantised_straight_and_transposed(
    shape: tuple[int, int], element: torch.dtype, offset: int, device: str
) -> None:
    """Of whole tiles and of parts, on a 16-byte boundary and beside it, and as a view whose rows lie apart."""
    rows, columns = shape
    values = torch.randn(rows * columns + offset, generator=torch.Generator().manual_seed(9)).to(element)
    matrix = values[offset:].view(shape)
    magnitude = magnitude_for(64.0, E4M3).to(device)
    expected = (matrix * 64.0).to(E4M3)
    memory = values.to(device)
    apart = torch.cat((matrix, matrix), dim=1).to(device)[:, :columns]
    for source in (memory[offset:].view(shape), apart):
        one, other = quantize_both_ways(source, E4M3, magnitude)
        assert one.values.is_contiguous() and other.values.is_contiguous()
        for straight in (one, quantize(source, E4M3, magnitude)):
            assert same_8_bit_numbers(straight.values, expected)
        for transposed in (other, quantize_transposed(source, E4M3, magnitude)):
            assert same_8_bit_numbers(transposed.values, expected.t())


@pytest.mark.parametrize("device", devices())
@pytest.mark.parametrize("element", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("count", [1, 31, 4096, 20_011])
def test_the_largest_magnitude_wherever_it_is(element: torch.dtype, count: int, device: str) -> None:
    values = torch.randn(count, generator=torch.Generator().manual_seed(10)).to(element)
    for place in {0, count // 2, count - 1}:
        for outlier in (-1e30, math.inf, -math.inf, math.nan, -math.nan):
            changed = values.clone()
            changed[place] = outlier
            expected = changed.abs().max().float()
            found = largest_magnitude(changed.to(device))
            assert found.dtype == torch.float32 and found.dim() == 0 and found.device.type == device
            torch.testing.assert_close(found.cpu(), expected, rtol=0, atol=0, equal_nan=True)
    small = torch.full((count,), -(2.0**-130)).to(element)
    assert largest_magnitude(small.to(device)).cpu() == 2.0**-130


@pytest.mark.parametrize("device", devices())
@pytest.mark.parametrize("dtype", [E4M3, E5M2])
def test_the_unit_is_that_of_the_scale(dtype: torch.dtype, device: str) -> None:
    powers = torch.tensor([1.0, 7.0, 0.875]).outer(2.0 ** torch.arange(-130.0, 126.0)).flatten()
    ends = (torch.full_like(powers, end) for end in (0.0, math.inf))
    one = torch.ones(1, 1, device=device)
    for magnitude in torch.cat((powers, *(torch.nextafter(powers, end) for end in ends)))[::5]:
        unit = quantize(one, dtype, magnitude.to(device)).unit
        assert float(unit.cpu()) == 1 / float(scale_of(magnitude, dtype)), float(magnitude)


@pytest.mark.parametrize("device", devices())
@pytest.mark.parametrize("dtype", [E4M3, E5M2])
def test_quantising_by_the_matrix_own_magnitude(dtype: torch.dtype, device: str) -> None:
    exact = matrix(11, 48, 80, 1e-3, 40.0)
    expected = scale_of(exact.abs().max().float(), dtype)
    straight, transposed = quantize_both_ways(exact.to(device), dtype)
    assert float(straight.unit.cpu()) == float(transposed.unit.cpu()) == 1 / float(expected)
    assert same_8_bit_numbers(straight.values, (exact * expected.bfloat16()).to(dtype))
    assert same_8_bit_numbers(quantize_transposed(exact.to(device), dtype).values, straight.values.cpu().t())


@pytest.mark.parametrize("dtype", [E4M3, E5M2])
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_what_is_not_finite_does_not_vanish(dtype: torch.dtype, bad: float) -> None:
    left = matrix(4, 16, 16, 1.0, 1.0)
    left[3, 5] = bad
    product = scaled_product(quantize(left, dtype), quantize(matrix(5, 16, 16, 1.0, 1.0), E4M3))
    assert product[3].isnan().all()


def test_zeros_and_nearly_zeros_give_zero() -> None:
    right = quantize(matrix(6, 16, 16, 1.0, 1.0), E4M3)
    for value in (0.0, 2.0**-130):
        product = scaled_product(quantize(torch.full((16, 16), value).bfloat16(), E4M3), right)
        assert torch.equal(product, torch.zeros_like(product))


def test_no_scale_is_read_by_the_host() -> None:
    left, right = matrix(7, 16, 32, 1.0, 1.0), matrix(8, 48, 32, 1.0, 1.0)
    with HostWaits() as waits:
        scaled_product(quantize(left, E5M2), quantize(right, E4M3)).sum()
    assert not waits.counts


@pytest.mark.parametrize("device", devices())
@pytest.mark.parametrize("gradient_format", [E4M3, E5M2])
def test_a_layer_is_the_same_whichever_way_its_operands_are_quantised(
    gradient_format: torch.dtype, device: str
) -> None:
    """To the bit; the outlier's gradient is transposed, too."""
    exact = matrix(12, 32, 48, 1.0, 100.0).view(32, 1, 48), matrix(13, 80, 48, 0.1, 7.0)
    gradient = matrix(14, 32, 80, 1e-4, 300.0).view(32, 1, 80).to(device)

    def results() -> list[torch.Tensor]:
        x, weight = (values.to(device).requires_grad_() for values in exact)
        output = _Fp8Linear.apply(x, weight, gradient_format, False, False, None, None)
        return [output.detach(), *torch.autograd.grad(output, (x, weight), gradient)]

    with selection.override("fp8", "reference"):
        expected = results()
    assert all(torch.equal(a.cpu(), e.cpu()) for a, e in zip(results(), expected, strict=True))


def test_the_products_of_a_layer_have_the_layout_that_a_gpu_takes(monkeypatch: pytest.MonkeyPatch) -> None:
    """By torch's own checks, on fake tensors of a GPU with the shapes and strides that the layer gives on a CPU."""
    operands: list[tuple[torch.Tensor, torch.Tensor]] = []
    product = torch._scaled_mm

    def keep(left: torch.Tensor, right: torch.Tensor, **arguments: Any) -> torch.Tensor:
        operands.append((left, right))
        return product(left, right, **arguments)

    monkeypatch.setattr(torch, "_scaled_mm", keep)
    tokens, inputs, outputs = 32, 48, 80
    x = torch.randn(tokens, 1, inputs).bfloat16().requires_grad_()
    weight = torch.randn(outputs, inputs).bfloat16().requires_grad_()
    _Fp8Linear.apply(x, weight, E5M2, False, False, None, None).sum().backward()
    left, right = operands[0]
    refused = ((left, right.contiguous()), (left.t().contiguous().t(), right), (left[:, :40], right[:40]))
    with FakeTensorMode(), torch.no_grad():
        scale = torch.empty((), device="cuda")

        def on_a_gpu(left: torch.Tensor, right: torch.Tensor) -> tuple[int, ...]:
            fakes = (torch.empty_strided(t.shape, t.stride(), dtype=t.dtype, device="cuda") for t in (left, right))
            return tuple(product(*fakes, scale_a=scale, scale_b=scale, out_dtype=torch.bfloat16).shape)

        assert [on_a_gpu(*pair) for pair in operands] == [(tokens, outputs), (tokens, inputs), (outputs, inputs)]
        for crooked in refused:
            with pytest.raises(RuntimeError, match=r"major|divisible by 16"):
                on_a_gpu(*crooked)


@pytest.mark.parametrize("capability, known", [((8, 0), False), ((8, 6), False), ((8, 9), True), ((9, 0), True)])
def test_an_older_gpu_is_named(monkeypatch: pytest.MonkeyPatch, capability: tuple[int, int], known: bool) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "NVIDIA A100")
    problem: Any = fp8.scaled_product_problem(torch.device("cuda:0"))
    assert (problem is None) == known
    assert known or "NVIDIA A100 (sm_8" in problem
    assert fp8.scaled_product_problem(torch.device("cpu")) is None


@pytest.mark.requires_gpu
@pytest.mark.skipif(
    not torch.cuda.is_available() or fp8.scaled_product_problem(torch.device("cuda:0")) is not None,
    reason="torch sees no GPU with 8-bit products",
)
@pytest.mark.parametrize("left_dtype", [E4M3, E5M2])
def test_gpu_and_cpu_agree(left_dtype: torch.dtype) -> None:
    left, right = matrix(1, 64, 96, 1.0, 1.0), matrix(2, 48, 96, 1.0, 1.0)
    here = scaled_product(quantize(left, left_dtype), quantize(right, E4M3))
    there = scaled_product(quantize(left.cuda(), left_dtype), quantize(right.cuda(), E4M3)).cpu()
    torch.testing.assert_close(there, here, rtol=2 * BF16_ROUNDING, atol=1e-3)
