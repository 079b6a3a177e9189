"""Spans in one variable-length call: what torch is told, and that the host waits for nothing.

The kernel itself runs on a GPU only. Here a plain-torch stand-in with its signature reads the boundaries as it does.
"""

from __future__ import annotations

import sys
import types
from itertools import pairwise
from unittest import mock

import pytest
import torch
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode

from megatron_synE.kernels import (
    Span,
    VariableLengthSpans,
    attention,
    causal_attention,
    choice,
    override,
    torch_causal_attention,
    variable_length_attention,
)

SCALE = 0.3


def boundaries(*lengths):
    return torch.tensor([0, *lengths]).cumsum(0).to(torch.int32)


def documents(*lengths):
    cu_seqlens = boundaries(*lengths)
    return VariableLengthSpans(cu_seqlens, cu_seqlens, max(lengths), max(lengths), (sum(lengths),))


def chunks():
    """Two chunks of 4 queries, [4, 8) and [8, 12) of 16 tokens, over documents of 3, 6 and 7 tokens."""
    return VariableLengthSpans(boundaries(0, 4, 0, 0, 1, 3), boundaries(3, 5, 0, 3, 6, 3), 4, 6, (8, 12))


def varlen_attn(query, key, value, cu_seq_q, cu_seq_k, max_q, max_k, *, scale, window_size, enable_gqa):
    """torch's, in plain torch: causal to the lower right, grouped heads, packed sequences."""
    assert window_size == (-1, 0) and cu_seq_q.dtype == cu_seq_k.dtype == torch.int32
    # As a kernel does, it looks into the memory of the (emulated) GPU.
    cu_seq_q, cu_seq_k = (getattr(bounds, "host", bounds) for bounds in (cu_seq_q, cu_seq_k))
    assert cu_seq_q[-1] == len(query) and cu_seq_k[-1] == len(key) == len(value) and len(cu_seq_q) == len(cu_seq_k)
    assert cu_seq_q.diff().max() <= max_q and cu_seq_k.diff().max() <= max_k
    assert enable_gqa or query.shape[1] == key.shape[1]
    contexts = []
    for (q, q_end), (k, k_end) in zip(*(pairwise(bounds.tolist()) for bounds in (cu_seq_q, cu_seq_k)), strict=True):
        repeats = query.shape[1] // key.shape[1]
        keys, values = (t[k:k_end].repeat_interleave(repeats, 1) for t in (key, value))
        scores = torch.einsum("qhd,khd->hqk", query[q:q_end], keys) * scale
        queries, length = scores.shape[1:]
        visible = torch.ones(queries, length, dtype=torch.bool, device=query.device).tril(length - queries)
        contexts.append(torch.einsum("hqk,khd->qhd", scores.masked_fill(~visible, -torch.inf).softmax(-1), values))
    return torch.cat(contexts)


@pytest.fixture
def stand_in(monkeypatch):
    """The GPU's route on the CPU, with the kernel above; counts its calls."""
    kernel = mock.Mock(side_effect=varlen_attn)
    monkeypatch.setattr(attention, "takes_variable_lengths", lambda *tensors: True)
    monkeypatch.setitem(sys.modules, "torch.nn.attention.varlen", types.SimpleNamespace(varlen_attn=kernel))
    return kernel


@pytest.mark.parametrize(
    ("spans", "keys"), [(documents(7, 1, 12), 20), (documents(5), 5), (chunks(), 16)], ids=["pack", "one", "chunks"]
)
@pytest.mark.parametrize(("batch", "repeats"), [(1, 2), (3, 1), (2, 3)])
def test_one_call_equals_the_loop(spans, keys, batch, repeats, stand_in):
    generator = torch.Generator().manual_seed(0)
    queries = int(spans.cu_seqlens_q[-1])
    shapes = ((queries, batch, 2, repeats, 8), (keys, batch, 2, 8), (keys, batch, 2, 8))
    inputs = [torch.randn(shape, generator=generator).requires_grad_() for shape in shapes]
    together = torch_causal_attention(*inputs, SCALE, spans)
    assert stand_in.call_count == 1
    looped = torch_causal_attention(*inputs, SCALE, spans.on_host)
    assert stand_in.call_count == 1
    torch.testing.assert_close(together, looped)
    gradient = torch.randn(looped.shape, generator=generator)
    both = [torch.autograd.grad(result, inputs, gradient) for result in (together, looped)]
    for ours, expected in zip(*both, strict=True):
        torch.testing.assert_close(ours, expected)


def test_spans_as_the_loop_needs_them():
    assert documents(7, 1, 12).on_host == [Span(0, 7, 0, 7), Span(7, 8, 7, 8), Span(8, 20, 8, 20)]
    assert chunks().on_host == [Span(0, 4, 3, 8), Span(4, 5, 3, 9), Span(5, 8, 9, 12)]


def test_keys_of_one_row_are_not_copied():
    keys = torch.zeros(20, 2)
    assert documents(20).key_rows(keys) is keys


def empty_inputs(device, dtype):
    query = torch.empty(8, 2, 2, 3, 16, device=device, dtype=dtype, requires_grad=True)
    key, value = (torch.empty(16, 2, 2, 16, device=device, dtype=dtype, requires_grad=True) for _ in range(2))
    bounds = (torch.empty(7, device=device, dtype=torch.int32) for _ in range(2))
    return [query, key, value], VariableLengthSpans(*bounds, 4, 6, (8, 12))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_the_host_reads_nothing_of_the_device(dtype, monkeypatch):
    """Fake tensors have no values: to read one is an error. In fp32 the loop has to."""
    pytest.importorskip("torch.nn.attention.varlen")
    monkeypatch.setattr(variable_length_attention, "obstacle", lambda: None)
    with FakeTensorMode(), torch.no_grad(), override("causal_attention", "reference"):
        inputs, spans = empty_inputs("cuda", dtype)
        if dtype == torch.float32:
            with pytest.raises(DataDependentOutputException):
                causal_attention(*inputs, SCALE, spans)
        else:
            context = causal_attention(*inputs, SCALE, spans)
            assert context.shape == inputs[0].shape and context.is_cuda


def test_the_host_reads_nothing_in_the_backward_pass(monkeypatch):
    """Without CUDA, autograd cannot run on fake tensors of a GPU; those of "meta" have no values either."""
    pytest.importorskip("torch.nn.attention.varlen")
    monkeypatch.setattr(attention, "takes_variable_lengths", lambda *tensors: True)
    inputs, spans = empty_inputs("meta", torch.bfloat16)
    context = torch_causal_attention(*inputs, SCALE, spans)
    gradients = torch.autograd.grad(context, inputs, torch.empty_like(context))
    assert [g.shape for g in gradients] == [t.shape for t in inputs]


@pytest.mark.parametrize("dim", [12, 264])
def test_heads_that_flash_attention_does_not_take(dim, monkeypatch):
    monkeypatch.setattr(variable_length_attention, "obstacle", lambda: None)
    with FakeTensorMode():
        for width, taken in ((16, True), (dim, False)):
            query = torch.empty(4, 1, 1, 2, width, device="cuda", dtype=torch.bfloat16)
            key = query.select(3, 0)
            assert variable_length_attention.takes_variable_lengths(query, key, key) == taken
            assert not variable_length_attention.takes_variable_lengths(query, key, key.float())


def old_varlen_attn(query, key, value, cu_seq_q, cu_seq_k, max_q, max_k, is_causal=False, return_aux=None):
    """As torch 2.10 has it."""


@pytest.mark.parametrize(
    ("available", "reason"),
    [
        (None, "has no torch.nn.attention.varlen"),
        (types.SimpleNamespace(varlen_attn=old_varlen_attn), "has no enable_gqa, scale, window_size"),
        (types.SimpleNamespace(varlen_attn=varlen_attn), "was built without flash attention"),
    ],
)
def test_why_there_is_a_loop_is_on_record(available, reason, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch.nn.attention.varlen", available)
    monkeypatch.setattr(torch.backends.cuda, "is_flash_attention_available", lambda: False)
    variable_length_attention.obstacle.cache_clear()
    try:
        assert reason in (variable_length_attention.obstacle() or "")
    finally:
        variable_length_attention.obstacle.cache_clear()


@pytest.mark.parametrize(
    ("obstacle", "words"), [(None, "one variable-length call"), ("torch is old", "a loop: torch is old")]
)
def test_the_choice_on_a_gpu_says_how_documents_run(obstacle, words, monkeypatch):
    from megatron_synE.kernels import selection

    monkeypatch.setattr(selection._native, "problem", lambda device_type: None)
    monkeypatch.setattr(selection._native, "extension", lambda device_type: types.SimpleNamespace())
    monkeypatch.setattr(variable_length_attention, "obstacle", lambda: obstacle)
    selection._default.cache_clear()
    try:
        assert words in choice("causal_attention", "cuda").reason
    finally:
        selection._default.cache_clear()
