"""Linear + vocabulary-parallel cross entropy against the reference in float64."""

from __future__ import annotations

from contextlib import nullcontext
from types import SimpleNamespace

import pytest
import torch

from megatron_synE.kernels import linear_cross_entropy, override, reference
from megatron_synE.kernels.linear_cross_entropy import _chunk_bytes, _softmax
from tests.helpers.distributed import run_distributed
from tests.kernels.host_cuda import build, why_not
from tests.kernels.host_cuda.gpu import emulated_gpu
from tests.kernels.oracle import BF16_FACTOR, devices, relative_error

pytestmark = pytest.mark.skipif(not devices(), reason="no compiled kernels were built")

# tokens, hidden, rows of weight, vocabulary, tokens of a chunk
SHAPES = [(1, 1, 2, 2, 8), (7, 5, 16, 13, 3), (33, 24, 301, 297, 8), (33, 24, 301, 297, 64), (20, 16, 4500, 4500, 9)]


def case(tokens: int, hidden: int, rows: int, vocab: int):
    generator = torch.Generator().manual_seed(0)
    hidden_NH = torch.randn(tokens, hidden, generator=generator)
    weight_VH = torch.randn(rows, hidden, generator=generator)
    labels = torch.randint(0, vocab, (tokens,), generator=generator)
    mask = (torch.rand(tokens, generator=generator) < 0.8).float()
    return hidden_NH, weight_VH, labels, mask


def losses_and_gradients(function, hidden, weight, labels, mask, vocab, **options):
    hidden, weight = hidden.detach().requires_grad_(), weight.detach().requires_grad_()
    loss, token_loss = function(hidden, weight, labels, mask.to(loss_dtype(hidden)), vocab, **options)
    loss.backward()
    return [loss.detach(), token_loss, hidden.grad, weight.grad]


def loss_dtype(hidden: torch.Tensor) -> torch.dtype:
    return torch.float64 if hidden.dtype == torch.float64 else torch.float32


@pytest.mark.parametrize("device", devices())
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("tokens", "hidden", "rows", "vocab", "chunk"), SHAPES)
def test_against_reference(tokens, hidden, rows, vocab, chunk, dtype, device):
    h, w, labels, mask = case(tokens, hidden, rows, vocab)
    h, w = h.to(dtype), w.to(dtype)
    expected = losses_and_gradients(reference.linear_cross_entropy, h.double(), w.double(), labels, mask, vocab)
    on_device = [t.to(device) for t in (h, w, labels, mask)]
    actual = losses_and_gradients(linear_cross_entropy, *on_device, vocab, chunk_tokens=chunk)
    plain = losses_and_gradients(reference.linear_cross_entropy, h, w, labels, mask, vocab)
    for number, (a, e, p) in enumerate(zip(actual, expected, plain, strict=True)):
        allowed = 1e-5 if dtype == torch.float32 else BF16_FACTOR * relative_error(p, e) + 1e-6
        assert relative_error(a, e) <= allowed, f"result {number}"
    padding = actual[3][vocab:]
    assert torch.equal(padding, torch.zeros_like(padding)), "padded rows of the vocabulary got a gradient"


@pytest.mark.parametrize("device", devices())
def test_masked_tokens_add_nothing_even_when_not_finite(device):
    h, w, labels, _ = (t.to(device) for t in case(6, 8, 10, 10))
    mask = torch.tensor([1.0, 1, 0, 1, 0, 1], device=device)
    labels[2] = -100
    expected = losses_and_gradients(linear_cross_entropy, h[mask > 0], w, labels[mask > 0], mask[mask > 0], 10)
    h[2] = float("inf")
    actual = losses_and_gradients(linear_cross_entropy, h, w, labels, mask, 10)
    assert actual[1][2] == 0 and actual[1][4] == 0
    torch.testing.assert_close(actual[0], expected[0])
    torch.testing.assert_close(actual[2][mask > 0], expected[2])


@pytest.mark.parametrize("device", devices())
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("rows", [3, 4, 301, 4500])
def test_nan_in_is_nan_out(rows, dtype, device):
    """One NaN in the weight makes every logit of its row of the vocabulary NaN; a masked token still adds nothing."""
    h, w, labels, _ = case(4, 8, rows, rows)
    mask = torch.tensor([1.0, 0, 1, 1])
    for row in (0, 1, rows - 1):
        broken = w.clone()
        broken[row, 0] = torch.nan
        on_device = [t.to(device) for t in (h.to(dtype), broken.to(dtype), labels, mask)]
        results = losses_and_gradients(linear_cross_entropy, *on_device, rows)
        loss, token_loss, dhidden, dweight = (result.cpu() for result in results)
        assert loss.isnan() and dweight.isnan().all()
        assert token_loss[[0, 2, 3]].isnan().all() and token_loss[1] == 0
        assert dhidden[[0, 2, 3]].isnan().all()


@pytest.mark.parametrize("device", devices())
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("columns", [3, 40, 9000])
@pytest.mark.parametrize("content", ["nan", "one nan", "-inf", "none"])
def test_statistics_of_a_shard_that_is_not_finite(content, columns, dtype, device):
    """As tensor-parallel ranks merge them: beside a finite shard NaN must remain, -inf and no column at all vanish."""
    logits = torch.randn(2, columns, generator=torch.Generator().manual_seed(0))
    valid = 0 if content == "none" else columns
    if content == "one nan":
        logits[:, columns // 2] = torch.nan
    elif content != "none":
        logits.fill_(float(content))
    logits, targets = logits.to(device, dtype), torch.tensor([-5, 1], device=device)
    scale = torch.ones(2, device=device)
    maximum, total, _ = _softmax(logits, targets, scale, valid, None, False)
    merged = total * (maximum - 3.0).exp()
    assert merged.isnan().all() if "nan" in content else torch.equal(merged.cpu(), torch.zeros(2))


@pytest.mark.parametrize("device", devices())
def test_the_gradient_of_masked_rows_is_zero_whatever_they_hold(device):
    logits = torch.randn(4, 37, generator=torch.Generator().manual_seed(0))
    logits[0], logits[1, 3], logits[2, ::2] = torch.nan, torch.inf, -torch.inf
    logits = logits.to(device)
    _softmax(logits, torch.zeros(4, dtype=torch.int64, device=device), torch.zeros(4, device=device), 30, None, True)
    assert torch.equal(logits.cpu(), torch.zeros(4, 37))


@pytest.mark.parametrize("device", devices())
def test_empty_and_gradient_scale(device):
    h, w, labels, mask = (t.to(device) for t in case(0, 8, 10, 10))
    results = losses_and_gradients(linear_cross_entropy, h, w, labels, mask, 10)
    assert results[0] == 0 and results[3].abs().sum() == 0
    h, w, labels, mask = (t.to(device) for t in case(5, 8, 10, 10))
    once = losses_and_gradients(linear_cross_entropy, h, w, labels, mask, 10)
    scaled = losses_and_gradients(lambda *a: (3 * linear_cross_entropy(*a)[0], mask), h, w, labels, mask, 10)
    torch.testing.assert_close(scaled[2], 3 * once[2])
    torch.testing.assert_close(scaled[3], 3 * once[3])


@pytest.mark.parametrize("device", devices())
@pytest.mark.parametrize("chunk", [4, 64])
def test_accumulates_into_main_grad(device, chunk):
    h, w, labels, mask = (t.to(device) for t in case(10, 8, 12, 12))
    expected = losses_and_gradients(linear_cross_entropy, h, w, labels, mask, 12)
    w = w.clone().requires_grad_()
    w.main_grad, w.grad_added_to_main_grad = torch.ones_like(w), False
    options = {"chunk_tokens": chunk, "accumulate_into_main_grad": True}
    linear_cross_entropy(h.requires_grad_(), w, labels, mask, 12, **options)[0].backward()
    assert w.grad_added_to_main_grad
    torch.testing.assert_close(w.main_grad, 1 + expected[3])


def test_main_grad_refuses_a_scaled_loss():
    h, w, labels, mask = case(10, 8, 12, 12)
    w = w.requires_grad_()
    w.main_grad = torch.zeros_like(w)
    loss, _ = linear_cross_entropy(h.requires_grad_(), w, labels, mask, 12, accumulate_into_main_grad=True)
    with pytest.raises(RuntimeError, match="gradient 1"):
        (2 * loss).backward()


def test_bad_arguments_are_named():
    h, w, labels, mask = case(5, 8, 10, 10)
    with pytest.raises(ValueError, match="weight"):
        linear_cross_entropy(h, w[:, :7], labels, mask, 10)
    with pytest.raises(ValueError, match="labels"):
        linear_cross_entropy(h, w, labels[:4], mask, 10)
    with pytest.raises(ValueError, match="vocab_size"):
        linear_cross_entropy(h, w, labels, mask, 11)


@pytest.mark.parametrize("elsewhere", ["weight", "labels", "loss_mask"])
def test_operands_of_two_devices_are_refused(elsewhere):
    operands = dict(zip(("hidden", "weight", "labels", "loss_mask"), case(5, 8, 10, 10), strict=True))
    operands[elsewhere] = operands[elsewhere].to("meta")
    with pytest.raises(ValueError, match=f"{elsewhere} is on meta and hidden on cpu"):
        linear_cross_entropy(*operands.values(), 10)


def _shard(dtype_name: str) -> list[torch.Tensor]:
    torch.distributed.init_process_group("gloo")
    rank, size = torch.distributed.get_rank(), torch.distributed.get_world_size()
    h, w, labels, mask = case(33, 24, 300, 290)
    dtype = getattr(torch, dtype_name)
    h, w = h.to(dtype), w.to(dtype).chunk(size)[rank].contiguous()
    group = torch.distributed.group.WORLD
    results = losses_and_gradients(linear_cross_entropy, h, w, labels, mask, 290, group=group, chunk_tokens=8)
    with override("linear_cross_entropy", "reference"):
        plain = losses_and_gradients(linear_cross_entropy, h, w, labels, mask, 290, group=group)
    return results + plain


def test_vocabulary_parallel_equals_one_process():
    """Four shards, the last one with padding rows: losses equal, gradients of hidden sum up, of weight concatenate."""
    h, w, labels, mask = case(33, 24, 300, 290)
    expected = losses_and_gradients(reference.linear_cross_entropy, h.double(), w.double(), labels, mask, 290)
    ranks = run_distributed(_shard, 4, "float32")
    for offset in (0, 4):
        for loss, token_loss, *_ in (r[offset:] for r in ranks):
            assert relative_error(loss, expected[0]) <= 1e-5
            assert relative_error(token_loss, expected[1]) <= 1e-5
        assert relative_error(sum(r[offset + 2] for r in ranks), expected[2]) <= 1e-5
        assert relative_error(torch.cat([r[offset + 3] for r in ranks]), expected[3]) <= 1e-5


def _nan_shard() -> list[torch.Tensor]:
    torch.distributed.init_process_group("gloo")
    rank, group = torch.distributed.get_rank(), torch.distributed.group.WORLD
    h, w, labels, _ = case(4, 8, 24, 24)
    w = w.chunk(2)[rank].contiguous()
    if rank == 1:
        w.fill_(torch.nan)
    mask = torch.tensor([1.0, 0, 1, 1])
    results = []
    for implementation in ("compiled", "reference"):
        with override("linear_cross_entropy", implementation):
            results += losses_and_gradients(linear_cross_entropy, h, w, labels, mask, 24, group=group)
    with emulated_gpu() if why_not() is None else nullcontext():
        on_device = [t.to("cpu" if why_not() else "cuda") for t in (h, w, labels, mask)]
        on_gpu = losses_and_gradients(linear_cross_entropy, *on_device, 24, group=group)
        results += [result.cpu() for result in on_gpu]
    return results


def test_a_vocabulary_shard_of_nan_does_not_vanish():
    """Each rank's loss is NaN, and so are its gradients, also those of the rank whose own logits are finite."""
    if why_not() is None:
        build()
    for results in run_distributed(_nan_shard, 2):
        for loss, token_loss, dhidden, dweight in zip(*[iter(results)] * 4, strict=True):
            assert loss.isnan() and dweight.isnan().all()
            assert token_loss[[0, 2, 3]].isnan().all() and token_loss[1] == 0
            assert dhidden[[0, 2, 3]].isnan().all()


def test_torch_library_registration():
    h, w, labels, mask = case(5, 8, 10, 10)
    arguments = (h.requires_grad_(), w.requires_grad_(), labels, mask, 10, "", 4, True)
    torch.library.opcheck(torch.ops.syne.linear_cross_entropy.default, arguments)


def test_chunks_grow_with_the_memory_of_the_gpu(monkeypatch):
    """A step of 8,192 tokens with Llama-3's vocabulary is two chunks on 80 GB and one on 141 GB."""
    logits_bytes = 8192 * 128_256 * 2
    for memory_gb, num_chunks in ((80, 2), (141, 1)):
        properties = SimpleNamespace(total_memory=memory_gb * 10**9)
        monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device, found=properties: found)
        assert -(-logits_bytes // _chunk_bytes(torch.device("cuda", 0))) == num_chunks
