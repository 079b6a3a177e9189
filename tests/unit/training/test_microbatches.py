"""Which samples a process reads, and how they become tensors."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from megatron_synE.training.evaluate import _count_only, rounds_of_rank
from megatron_synE.training.microbatches import host_microbatch, sample_numbers_of_rank, to_microbatch
from tests.helpers.training import SEQ_LENGTH, synthetic_batch


@given(st.integers(1, 4), st.integers(1, 4), st.integers(1, 4), st.integers(0, 1000))
def test_processes_together_read_the_global_batch_once(micro: int, dp: int, rounds: int, first: int) -> None:
    size = micro * dp * rounds
    batch = np.arange(first, first + size)
    read = [n for rank in range(dp) for row in sample_numbers_of_rank(batch, micro, rank, dp) for n in row.tolist()]
    assert sorted(read) == list(range(first, first + size))


@given(st.integers(0, 40), st.integers(1, 4), st.integers(1, 3), st.integers(1, 3))
def test_evaluation_counts_every_sample_once_in_equal_rounds(samples: int, micro: int, dp: int, multiple: int) -> None:
    plans = [
        rounds_of_rank(samples, micro, data_parallel_rank=rank, data_parallel_size=dp, rounds_multiple=multiple)
        for rank in range(dp)
    ]
    counted = [index for plan in plans for indices, valid in plan for index in indices[:valid]]
    assert sorted(counted) == list(range(samples))
    assert len({len(plan) for plan in plans}) == 1
    assert len(plans[0]) % multiple == 0
    assert all(len(indices) == micro for plan in plans for indices, _ in plan)


@pytest.mark.parametrize("isolate", [False, True])
def test_components_stand_at_their_tokens(isolate: bool) -> None:
    batch = synthetic_batch(range(4), isolate)
    micro = to_microbatch(batch, torch.device("cpu"))
    assert micro.component_BS.reshape(4, SEQ_LENGTH)[:, 0].tolist() == batch.component_B.tolist()
    assert micro.tokens_BS.shape == micro.labels_BS.shape == ((1, 4 * SEQ_LENGTH) if isolate else (4, SEQ_LENGTH))
    if isolate:
        assert micro.packed_seq_params.cu_seqlens_q.tolist()[-1] == 4 * SEQ_LENGTH
        lengths = micro.packed_seq_params.cu_seqlens_q.diff()
        assert micro.packed_seq_params.max_seqlen_q == int(lengths.max())
    else:
        assert micro.packed_seq_params is None


@pytest.mark.parametrize("isolate", [False, True])
def test_samples_that_only_fill_a_round_do_not_count(isolate: bool) -> None:
    batch = synthetic_batch(range(4), isolate)
    shortened = _count_only(batch, 3)
    mask = shortened.loss_mask_BS.reshape(4, -1)
    assert not mask[3].any()
    assert np.array_equal(mask[:3], batch.loss_mask_BS.reshape(4, -1)[:3])
    assert _count_only(batch, 4) is batch


def test_everything_that_goes_to_a_gpu_is_page_locked_and_does_not_block(monkeypatch: pytest.MonkeyPatch) -> None:
    locked: list[torch.Tensor] = []
    copies: list[bool] = []

    def to(self: torch.Tensor, device: torch.device, non_blocking: bool = False) -> torch.Tensor:
        copies.append(non_blocking and any(self is one for one in locked))
        return self

    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda self: (locked.append(self), self)[1])
    monkeypatch.setattr(torch.Tensor, "to", to)
    host_microbatch(synthetic_batch(range(2), True), torch.device("cuda:0")).to(torch.device("cuda:0"))
    assert copies == [True] * 6
