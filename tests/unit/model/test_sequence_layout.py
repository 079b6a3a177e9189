"""Documents and context-parallel chunks as spans and positions, against the same worked out token by token."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from megatron.core.packed_seq_params import PackedSeqParams

from megatron_synE.model.sequence_layout import chunk_begins, document_spans, sequence_layout

LENGTHS = ([48], [1, 7, 20, 12, 8], [24, 24], [5, 43], [1] * 48, [12, 12, 12, 12])


class Group:
    def __init__(self, rank: int, size: int) -> None:
        self._rank, self._size = rank, size

    def rank(self) -> int:
        return self._rank

    def size(self) -> int:
        return self._size


def cumulative(lengths: list[int]) -> torch.Tensor:
    return torch.tensor([0, *lengths]).cumsum(0).to(torch.int32)


def packed(lengths: list[int]) -> PackedSeqParams:
    bounds = cumulative(lengths)
    return PackedSeqParams(
        qkv_format="thd", cu_seqlens_q=bounds, cu_seqlens_kv=bounds, max_seqlen_q=max(lengths),
        max_seqlen_kv=max(lengths),
    )  # fmt: skip


@pytest.mark.parametrize("lengths", LENGTHS, ids=str)
@pytest.mark.parametrize("size", [1, 2, 3, 4])
def test_every_token_sees_its_document_up_to_itself(lengths: list[int], size: int) -> None:
    document = torch.repeat_interleave(torch.arange(len(lengths)), torch.tensor(lengths))
    first = cumulative(lengths)[document]
    local_length, chunk = 48 // size, 48 // size // (1 if size == 1 else 2)
    for rank in range(size):
        begins = chunk_begins(local_length, rank, size)
        spans = document_spans(begins, local_length, cumulative(lengths), max(lengths))
        mine = torch.cat([torch.arange(begin, begin + chunk) for begin in begins])
        seen = torch.zeros(local_length, 48, dtype=torch.bool)
        for q_begin, q_end, k_begin, k_end in spans.on_host:
            shape = (q_end - q_begin, k_end - k_begin)
            seen[q_begin:q_end, k_begin:k_end] = torch.ones(shape, dtype=torch.bool).tril(shape[1] - shape[0])
        keys = torch.arange(48)
        assert torch.equal(seen, (keys >= first[mine, None]) & (keys <= mine[:, None]))
        assert all(a.query_end == b.query_begin for a, b in pairwise(spans.on_host))
        assert spans.cu_seqlens_q.diff().max() <= spans.max_seqlen_q <= local_length
        assert spans.cu_seqlens_k.diff().max() <= spans.max_seqlen_k <= max(lengths)
        layout = sequence_layout(torch.rand(48, 1, 1, 4), packed(lengths), local_length, 1, Group(rank, size))  # type: ignore[arg-type]
        assert torch.equal(layout.positions_N, mine - first[mine])


def test_without_documents() -> None:
    angles = torch.rand(24, 1, 1, 4)
    alone = sequence_layout(angles, None, 24, 2, Group(0, 1))  # type: ignore[arg-type]
    assert alone.spans is None and alone.positions_N.tolist() == [n for n in range(24) for _ in range(2)]
    angles = torch.rand(24, 1, 1, 4)
    split = sequence_layout(angles, None, 12, 1, Group(0, 2))  # type: ignore[arg-type]
    assert split.spans is not None
    assert split.spans.on_host == [(0, 6, 0, 6), (6, 12, 0, 24)]
    assert split.positions_N.tolist() == [*range(6), *range(18, 24)]


def test_an_odd_share_is_refused() -> None:
    with pytest.raises(ValueError, match=r"parallel\.context_parallel_size"):
        chunk_begins(7, 0, 2)


@pytest.mark.parametrize("size", [1, 2])
def test_the_host_reads_nothing_of_the_device(size: int) -> None:
    """Tensors of the device "meta" have no values: to read one is an error."""
    bounds = torch.empty(6, dtype=torch.int32, device="meta")
    for documents in (PackedSeqParams(cu_seqlens_q=bounds, max_seqlen_q=20), None):
        angles = torch.empty(48, 1, 1, 4, device="meta")
        layout = sequence_layout(angles, documents, 48 // size, 1, Group(0, size))  # type: ignore[arg-type]
        assert layout.positions_N.is_meta and layout.cos_PD.is_meta
        assert layout.spans is None or layout.spans.cu_seqlens_k.is_meta
