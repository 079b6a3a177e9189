"""Layout, RoPE and attention of isolated documents on the emulated GPU: the CPU's results, without a wait for the GPU.

Torch's variable-length attention itself needs a real one: plain torch stands in for it.
"""

from __future__ import annotations

import pytest
import torch
from megatron.core.packed_seq_params import PackedSeqParams

from megatron_synE.kernels import causal_attention, rotary_self_attention
from megatron_synE.model.sequence_layout import SequenceLayout, chunk_begins, sequence_layout
from tests.kernels.host_cuda import why_not
from tests.kernels.host_cuda.gpu import emulated_gpu
from tests.kernels.test_variable_length_attention import stand_in  # noqa: F401
from tests.unit.model.test_sequence_layout import Group

pytestmark = pytest.mark.skipif(why_not() is not None, reason=str(why_not()))
LENGTHS = [5, 1, 11, 7]
TOTAL, GROUPS, HEADS, DIM = sum(LENGTHS), 2, 4, 8


def layout_on(device: str, rank: int = 0, size: int = 1) -> SequenceLayout:
    bounds = torch.tensor([0, *LENGTHS]).cumsum(0).to(torch.int32).to(device)
    packed = PackedSeqParams(cu_seqlens_q=bounds, max_seqlen_q=max(LENGTHS))
    angles = torch.outer(torch.arange(TOTAL), torch.tensor([1.0, 0.3, 0.1, 0.01])).repeat(1, 2)[:, None, None]
    return sequence_layout(angles.to(device), packed, TOTAL // size, 1, Group(rank, size))  # type: ignore[arg-type]


def turned_and_attended(device: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Result and gradient of a packed projection of the whole sequence."""
    generator = torch.Generator().manual_seed(0)
    values = torch.randn(TOTAL, 1, GROUPS * HEADS * DIM, generator=generator)
    projected = values.to(device).requires_grad_()
    layout = layout_on(device)
    rotary = (layout.cos_PD, layout.sin_PD, layout.positions_N)
    context = rotary_self_attention(projected * 1, *rotary, (TOTAL, 1, GROUPS, HEADS, DIM), 0.3, layout.spans)
    (gradient,) = torch.autograd.grad(context.square().sum(), projected)
    return context.detach(), gradient


def test_one_process(stand_in) -> None:  # noqa: F811
    expected = turned_and_attended("cpu")
    assert not stand_in.called
    with emulated_gpu() as gpu:
        actual = turned_and_attended("cuda")
        assert stand_in.call_count == 1 and gpu.waits == []
        for ours, wanted in zip(actual, expected, strict=True):
            torch.testing.assert_close(ours.cpu(), wanted, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("size", [2, 3])
def test_chunks_of_context_parallel_processes(size: int, stand_in) -> None:  # noqa: F811
    """Each rank's queries against all keys: together the rows, and the sums of gradients, of one process."""
    generator = torch.Generator().manual_seed(0)
    query = torch.randn(TOTAL, 1, GROUPS, HEADS - 2, DIM, generator=generator).requires_grad_()
    key, value = (torch.randn(TOTAL, 1, GROUPS, DIM, generator=generator).requires_grad_() for _ in range(2))
    whole = causal_attention(query, key, value, 0.3, layout_on("cpu").spans)
    expected = torch.autograd.grad(whole.square().sum(), (query, key, value))
    sums = [torch.zeros_like(gradient) for gradient in expected]
    local_length = TOTAL // size
    for rank in range(size):
        places = torch.cat([torch.arange(b, b + local_length // 2) for b in chunk_begins(local_length, rank, size)])
        inputs = [t.detach().requires_grad_() for t in (query[places], key, value)]
        with emulated_gpu() as gpu:
            there = [t.to("cuda") for t in inputs]
            spans = layout_on("cuda", rank, size).spans
            context = causal_attention(*there, 0.3, spans)
            gradients = torch.autograd.grad(context.square().sum(), there)
            assert stand_in.call_count == rank + 1 and gpu.waits == []
            torch.testing.assert_close(context.detach().cpu(), whole[places], rtol=1e-5, atol=1e-5)
            own = [gradient.cpu() for gradient in gradients]
        sums[0][places] += own[0]
        sums[1] += own[1]
        sums[2] += own[2]
    for ours, wanted in zip(sums, expected, strict=True):
        torch.testing.assert_close(ours, wanted, rtol=1e-5, atol=1e-5)
