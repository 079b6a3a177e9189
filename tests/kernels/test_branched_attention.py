"""Attention to parts of the keys, and what is put together of it, against attention to all of them in float64."""

from __future__ import annotations

import pytest
import torch

from megatron_synE.kernels import branched_attention as module
from megatron_synE.kernels import merge_, partial_attention

TOLERANCE = {torch.float32: 2e-5, torch.bfloat16: 2e-2}


def tensors(num_queries: int, num_keys: int, dtype: torch.dtype) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(num_queries * 1000 + num_keys)
    groups, repeats, dim = 2, 3, 16
    shapes = [(num_queries, groups, repeats, dim), (num_keys, groups, dim), (num_keys, groups, dim)]
    return [torch.randn(shape, generator=generator).to(dtype) for shape in shapes]


def expected(
    query_NGRD: torch.Tensor, key_TGD: torch.Tensor, value_TGD: torch.Tensor, scale: float, is_causal: bool
) -> tuple[torch.Tensor, torch.Tensor]:
    scores_GNRT = torch.einsum("ngrd,tgd->gnrt", query_NGRD.double(), key_TGD.double()) * scale
    if is_causal:
        hidden = torch.ones(len(query_NGRD), len(key_TGD)).triu(len(key_TGD) - len(query_NGRD) + 1).bool()
        scores_GNRT = scores_GNRT.masked_fill(hidden[:, None], float("-inf"))
    context_NGRD = torch.einsum("gnrt,tgd->ngrd", scores_GNRT.softmax(-1), value_TGD.double())
    return context_NGRD, scores_GNRT.logsumexp(-1).transpose(0, 1)


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("plain", [False, True], ids=["compiled", "plain"])
@pytest.mark.parametrize("is_causal", [False, True], ids=["all keys", "causal"])
@pytest.mark.parametrize("num_queries, num_keys", [(1, 1), (1, 37), (5, 5), (7, 40), (33, 129)])
def test_a_part(
    num_queries: int, num_keys: int, is_causal: bool, plain: bool, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    operands = tensors(num_queries, num_keys, dtype)
    wanted = expected(*operands, 0.2, is_causal)
    for chunk_bytes in (module.CHUNK_BYTES, 4096):
        monkeypatch.setattr(module, "CHUNK_BYTES", chunk_bytes)
        found = partial_attention(*operands, 0.2, is_causal=is_causal, plain=plain)
        assert found[0].dtype == dtype and found[1].dtype == torch.float32
        for own, right in zip(found, wanted, strict=True):
            torch.testing.assert_close(own.double(), right, rtol=TOLERANCE[dtype], atol=TOLERANCE[dtype])


def test_parts_put_together_are_the_whole() -> None:
    query, key, value = tensors(9, 100, torch.float32)
    whole = expected(query, key, value, 0.2, is_causal=True)
    context, logsumexp = partial_attention(query, key[60:], value[60:], 0.2, is_causal=True)
    context, logsumexp = context.clone(), logsumexp.clone()
    for keys in (slice(0, 50), slice(50, 60)):
        merge_(context, logsumexp, *partial_attention(query, key[keys], value[keys], 0.2, is_causal=False))
    torch.testing.assert_close(context.double(), whole[0], rtol=2e-5, atol=2e-5)
    torch.testing.assert_close(logsumexp.double(), whole[1], rtol=2e-5, atol=2e-5)
