"""Causal attention: whole sequences, the last queries of more keys, spans; against the reference in float64."""

from __future__ import annotations

from functools import partial

import pytest
import torch

from megatron_synE.kernels import (
    Span,
    causal_attention,
    override,
    packed_self_attention,
    reference,
    rotary_self_attention,
)
from tests.kernels.oracle import check, devices

pytestmark = pytest.mark.skipif(not devices(), reason="no compiled kernels were built")


def oracle(query, key, value, scale=0.3):
    queries, batch, groups, repeats, dim = query.shape
    heads = query.reshape(queries, batch, groups * repeats, dim).permute(1, 2, 0, 3)
    context = reference.causal_attention(heads, key.permute(1, 2, 0, 3), value.permute(1, 2, 0, 3), scale)
    return context.permute(2, 0, 1, 3).reshape(query.shape)


def eager(query, key, value, scale=0.3):
    """Attention as torch programs write it: every intermediate in the inputs' dtype."""
    repeats, (queries, keys) = query.shape[3], (len(query), len(key))
    key, value = (t.repeat_interleave(repeats, 2).permute(1, 2, 0, 3) for t in (key, value))
    scores = query.flatten(2, 3).permute(1, 2, 0, 3) @ key.transpose(2, 3) * scale
    mask = torch.ones(queries, keys, dtype=torch.bool).tril(keys - queries)
    context = torch.softmax(scores.masked_fill(~mask, -torch.inf), -1) @ value
    return context.permute(2, 0, 1, 3).reshape(query.shape)


def inputs(queries, keys, batch, groups, repeats, dim):
    generator = torch.Generator().manual_seed(0)
    shapes = ((queries, batch, groups, repeats, dim), (keys, batch, groups, dim), (keys, batch, groups, dim))
    return [torch.randn(shape, generator=generator) for shape in shapes]


@pytest.mark.parametrize("device", devices())
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    "shape", [(1, 1, 1, 1, 1, 2), (13, 13, 2, 2, 3, 8), (5, 29, 2, 1, 4, 16), (67, 67, 1, 3, 1, 64)]
)
def test_against_reference(shape, dtype, device, monkeypatch):
    for block_queries in (4, 128):  # several blocks of queries, and one
        monkeypatch.setattr("megatron_synE.kernels.blocked_attention.BLOCK_QUERIES", block_queries)
        check(lambda q, k, v: causal_attention(q, k, v, 0.3), oracle, inputs(*shape), dtype, device, eager)


@pytest.mark.parametrize("device", devices())
def test_torch_attention_agrees(device):
    """The path for GPUs and other dtypes: torch's own attention, lower-right causal where keys outnumber queries."""
    for shape in ((13, 13, 2, 2, 3, 8), (5, 29, 2, 1, 4, 16)):
        with override("causal_attention", "reference"):
            check(lambda q, k, v: causal_attention(q, k, v, 0.3), oracle, inputs(*shape), torch.float32, device)


@pytest.mark.parametrize("device", devices())
def test_spans_isolate_documents(device):
    query, key, value = (t.to(device).requires_grad_() for t in inputs(20, 20, 1, 2, 2, 8))
    spans = [Span(0, 7, 0, 7), Span(7, 8, 7, 8), Span(8, 20, 8, 20)]
    together = causal_attention(query, key, value, 0.3, spans)
    alone = torch.cat([oracle(query[a:b], key[a:b], value[a:b]) for a, b, _, _ in spans])
    torch.testing.assert_close(together, alone)
    grads = [torch.autograd.grad(x.square().sum(), (query, key, value), retain_graph=True) for x in (together, alone)]
    for ours, expected in zip(*grads, strict=True):
        torch.testing.assert_close(ours, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("device", devices())
def test_strided_views_of_a_packed_projection(device):
    packed = torch.randn(11, 2, 3, 6, 8, device=device)
    query, key, value = packed[..., :4, :], packed[..., 4, :], packed[..., 5, :]
    expected = causal_attention(query.contiguous(), key.contiguous(), value.contiguous(), 0.3)
    assert torch.equal(causal_attention(query, key, value, 0.3), expected)


@pytest.mark.parametrize("device", devices())
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_packed_projection_against_reference(dtype, device, monkeypatch):
    """The same result and gradient as of the parts, for one span and for documents; a few heads at a time too."""

    def of_parts(packed, spans):
        query, key, value = packed[..., :-2, :], packed[..., -2, :], packed[..., -1, :]
        return torch.cat([oracle(query[a:b], key[c:d], value[c:d]) for a, b, c, d in spans])

    def eager_of_parts(packed, spans):
        query, key, value = packed[..., :-2, :], packed[..., -2, :], packed[..., -1, :]
        return torch.cat([eager(query[a:b], key[c:d], value[c:d]) for a, b, c, d in spans])

    generator = torch.Generator().manual_seed(0)
    packed = torch.randn(21, 2, 3, 4, 8, generator=generator)
    monkeypatch.setattr("megatron_synE.kernels.blocked_attention.BLOCK_QUERIES", 6)
    for block_bytes in (1, 4 * 2**20):
        monkeypatch.setattr("megatron_synE.kernels.blocked_attention.BLOCK_BYTES", block_bytes)
        for spans in ([Span(0, 21, 0, 21)], [Span(0, 13, 0, 13), Span(13, 14, 13, 14), Span(14, 21, 14, 21)]):
            check(
                lambda x, spans=spans: packed_self_attention(x, 0.3, spans),
                lambda x, spans=spans: of_parts(x, spans),
                [packed],
                dtype,
                device,
                lambda x, spans=spans: eager_of_parts(x, spans),
            )


@pytest.mark.parametrize("device", devices())
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_rotation_and_attention_of_a_packed_projection(dtype, device):
    """On a CPU rotated in place, on a GPU while Q, K and V are taken apart."""
    angles = torch.outer(torch.arange(9.0), torch.tensor([1.0, 0.3, 0.1, 0.01]))
    positions = torch.arange(9).repeat_interleave(2)
    spans = [Span(0, 4, 0, 4), Span(4, 9, 4, 9)]

    def ours(packed):
        tables = (angles.cos().to(device), angles.sin().to(device), positions.to(device))
        return rotary_self_attention(packed.clone(), *tables, (9, 2, 3, 4, 8), 0.3, spans)

    def oracle_or_eager(attend, packed):
        tables = (angles.cos().to(packed.dtype), angles.sin().to(packed.dtype))
        rotated = reference.rope(packed.view(18, 3, 4, 8), *tables, positions, 3).view(9, 2, 3, 4, 8)
        query, key, value = rotated[..., :2, :], rotated[..., 2, :], rotated[..., 3, :]
        return torch.cat([attend(query[a:b], key[c:d], value[c:d]) for a, b, c, d in spans])

    packed = torch.randn(9, 2, 96, generator=torch.Generator().manual_seed(0))
    check(ours, partial(oracle_or_eager, oracle), [packed], dtype, device, partial(oracle_or_eager, eager))


@pytest.mark.parametrize("device", devices())
def test_spans_may_share_keys(device):
    """As the two chunks of a context-parallel process do: the gradients of a key add up over the spans."""
    query, key, value = (t.to(device).requires_grad_() for t in inputs(8, 16, 1, 2, 2, 8))
    spans = [Span(0, 4, 0, 4), Span(4, 8, 0, 16)]
    together = causal_attention(query, key, value, 0.3, spans)
    alone = torch.cat([oracle(query[a:b], key[c:d], value[c:d]) for a, b, c, d in spans])
    torch.testing.assert_close(together, alone)
    grads = [torch.autograd.grad(x.square().sum(), (query, key, value)) for x in (together, alone)]
    for ours, expected in zip(*grads, strict=True):
        torch.testing.assert_close(ours, expected, rtol=1e-4, atol=1e-5)


def test_torch_library_registration():
    arguments = [t.requires_grad_() for t in inputs(5, 9, 1, 2, 2, 8)]
    torch.library.opcheck(torch.ops.syne.causal_attention.default, (*arguments, 0.3, [0, 5, 0, 9]))
    packed = torch.randn(7, 1, 2, 4, 8, requires_grad=True)
    torch.library.opcheck(torch.ops.syne.packed_causal_attention.default, (packed, 0.3, [0, 3, 0, 3, 3, 7, 3, 7]))
