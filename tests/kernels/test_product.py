"""Products of fp32 matrices by oneDNN against float64, and when torch's own are taken."""

from __future__ import annotations

import types
from collections.abc import Iterator

import pytest
import torch

from megatron_synE.kernels import onednn, override, product, reference, selection, wgrad_gemm_accum_fp32
from tests.kernels.oracle import devices, relative_error

pytestmark = pytest.mark.skipif(
    not devices() or not hasattr(torch.ops.mkldnn, "_linear_pointwise"), reason="needs the extension, and oneDNN"
)
SIZES = [(1, 1, 1), (5, 7, 3), (128, 65, 33), (1, 300, 17), (257, 31, 129)]


@pytest.fixture
def by_onednn(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """However small, and whoever made the processor."""
    monkeypatch.setitem(product.__globals__, "FEWEST_MULTIPLICATIONS", 0)
    with override("product", "compiled"):
        yield


def matrix(rows: int, columns: int, layout: str, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    generator = torch.Generator().manual_seed(rows * 1000 + columns)
    if layout == "transposed":
        return torch.randn(columns, rows, generator=generator).to(dtype).t()
    if layout == "part":
        return torch.randn(rows + 2, columns + 3, generator=generator).to(dtype)[1:-1, 2:-1]
    return torch.randn(rows, columns, generator=generator).to(dtype)


@pytest.mark.usefixtures("by_onednn")
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("left", ["rows", "transposed", "part"])
@pytest.mark.parametrize("right", ["rows", "transposed", "part"])
def test_operands_may_lie_in_any_way(size: tuple[int, int, int], left: str, right: str) -> None:
    rows, inner, columns = size
    a, b = matrix(rows, inner, left), matrix(inner, columns, right)
    found = product(a, b)
    assert found.is_contiguous() and found.dtype == torch.float32
    assert relative_error(found, a.double() @ b.double()) < 1e-6


@pytest.mark.usefixtures("by_onednn")
@pytest.mark.parametrize("size", SIZES)
def test_weight_gradients_are_added_in_place(size: tuple[int, int, int]) -> None:
    tokens, outputs, inputs = size
    gradient, hidden = matrix(tokens, outputs, "rows"), matrix(tokens, inputs, "rows")
    main_grad = matrix(outputs, inputs, "rows")
    expected = main_grad.double() + gradient.double().t() @ hidden.double()
    wgrad_gemm_accum_fp32(hidden, gradient, main_grad)
    assert relative_error(main_grad, expected) < 1e-6


@pytest.mark.usefixtures("by_onednn")
def test_empty_and_not_finite() -> None:
    assert product(torch.empty(0, 3), torch.empty(3, 4)).shape == (0, 4)
    assert product(torch.ones(2, 2), torch.tensor([[float("nan")], [1.0]])).isnan().all()
    assert product(torch.ones(2, 2), torch.tensor([[float("inf")], [1.0]])).isinf().all()


@pytest.mark.usefixtures("by_onednn")
def test_the_loss_over_the_vocabulary_takes_it(monkeypatch: pytest.MonkeyPatch) -> None:
    from megatron_synE.kernels import linear_cross_entropy

    seen: list[tuple[int, ...]] = []
    real = onednn.product
    monkeypatch.setattr(onednn, "product", lambda a, b: (seen.append(tuple(a.shape)), real(a, b))[1])
    hidden, weight = matrix(6, 8, "rows").requires_grad_(), matrix(40, 8, "rows").requires_grad_()
    labels, mask = torch.arange(6), torch.ones(6)
    loss, _ = linear_cross_entropy(hidden, weight, labels, mask, 37, chunk_tokens=4)
    loss.backward()
    assert (4, 8) in seen and (2, 40) in seen and (40, 4) in seen
    exact = [tensor.detach().double().requires_grad_() for tensor in (hidden, weight)]
    expected, _ = reference.linear_cross_entropy(*exact, labels, mask, 37, None)
    expected.backward()
    for found, wanted in zip((hidden, weight), exact, strict=True):
        assert relative_error(found.grad, wanted.grad) < 1e-5


def test_small_products_and_16_bits_are_torchs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(onednn, "product", lambda a, b: pytest.fail("oneDNN was called"))
    small, large = torch.ones(8, 8), torch.ones(512, 512)
    with override("product", "compiled"):
        assert torch.equal(product(small, small), small * 8)
        assert product(large.bfloat16(), large.bfloat16()).dtype == torch.bfloat16
    with override("product", "reference"):
        assert torch.equal(product(large, large), large * 512)


@pytest.mark.parametrize(
    ("intel", "instructions", "words"),
    [(True, "avx512", "MKL, which torch uses, is fast"), (False, "avx2", "is fast"), (False, "avx512", None)],
)
def test_the_processor_decides(
    intel: bool, instructions: str, words: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = types.SimpleNamespace(made_by_intel=lambda: intel, instruction_set=lambda: instructions)
    monkeypatch.setattr(onednn._native, "extension", lambda device_type: module)
    monkeypatch.setattr(onednn.platform, "machine", lambda: "x86_64")
    monkeypatch.setattr(torch.backends.mkl, "is_available", lambda: True)
    obstacle = onednn.obstacle()
    assert obstacle is None if words is None else words in str(obstacle)


def test_without_mkl_or_on_a_gpu_torch_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.mkl, "is_available", lambda: False)
    assert "MKL" in str(onednn.obstacle())
    monkeypatch.setattr(selection._native, "problem", lambda device_type: None)
    monkeypatch.setattr(selection._native, "extension", lambda device_type: types.SimpleNamespace())
    assert selection._default.__wrapped__("product", "cuda").implementation == "reference"
