"""Tokens of several sequences in one row see what a pass over each whole sequence would show them."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from megatron_synE.model.key_value_cache import CachedTokens, Keys, KeyValueCache, cached_tokens

GROUPS, REPEATS, DIM = 2, 2, 8


def draw(count: int, *shape: int) -> torch.Tensor:
    return torch.randn(count, *shape, generator=torch.Generator().manual_seed(count))


def whole(query_NGRD: torch.Tensor, key_NGD: torch.Tensor, value_NGD: torch.Tensor) -> torch.Tensor:
    query = query_NGRD.flatten(1, 2).transpose(0, 1)
    key, value = (tensor.repeat_interleave(REPEATS, dim=1).transpose(0, 1) for tensor in (key_NGD, value_NGD))
    return F.scaled_dot_product_attention(query, key, value, is_causal=True).transpose(0, 1).unflatten(1, (GROUPS, -1))


def numbers(*values: int) -> torch.Tensor:
    return torch.tensor(values)


def attend(tokens: CachedTokens, way: str, *parts: torch.Tensor) -> torch.Tensor:
    if way != "one call":
        return tokens.attend(5, *parts, DIM**-0.5, plain=way == "plain")
    tokens.cache.keep(5, *parts[1:], tokens.slots_N)
    return tokens._in_one_call(5, parts[0], DIM**-0.5)


@pytest.mark.parametrize("way", ["compiled", "plain", "one call"])
def test_branches_see_their_stem(way: str) -> None:
    # Two sequences of 4 + 3 and 4 + 2 tokens with the first 4 in common, then one token more of the second.
    stem, first, second = range(0, 4), range(4, 7), range(7, 10)
    query, key, value = draw(10, GROUPS, REPEATS, DIM), draw(10, GROUPS, DIM), draw(10, GROUPS, DIM) + 1
    cache = KeyValueCache(5)
    slots = numbers(3, 1, 4, 2)
    alone = cached_tokens(cache, torch.arange(4), slots, [], [Keys(0, 4, slots)], 100)
    context = [attend(alone, way, query[:4], key[:4], value[:4])]
    cache.grow(11)
    own = numbers(9, 8, 7, 6, 5)
    branches = cached_tokens(
        cache, numbers(4, 5, 6, 4, 5), own, [Keys(0, 5, slots)], [Keys(0, 3, own[:3]), Keys(3, 5, own[3:])], 100
    )
    context.append(attend(branches, way, query[4:9], key[4:9], value[4:9]))
    last = cached_tokens(
        cache, numbers(6), numbers(10), [], [Keys(0, 1, torch.cat((slots, own[3:], numbers(10))))], 100
    )
    context.append(attend(last, way, query[9:], key[9:], value[9:]))
    found = torch.cat(context)
    for branch in (first, second):
        places = torch.tensor([*stem, *branch])
        expected = whole(query[places], key[places], value[places])
        torch.testing.assert_close(found[places], expected, rtol=1e-5, atol=1e-5)


def test_what_is_kept_stays_when_the_cache_grows() -> None:
    cache, key, value = KeyValueCache(3), draw(3, GROUPS, DIM), draw(3, GROUPS, DIM) * 2
    cache.keep(1, key, value, numbers(2, 0, 1))
    cache.grow(9)
    cache.keep(1, key[:1], value[:1], numbers(8))
    cache.keep(2, value, key, numbers(0, 1, 2))
    found_key, found_value = cache.of(1, numbers(8, 0, 1, 2))
    assert torch.equal(found_key, key[[0, 1, 2, 0]]) and torch.equal(found_value, value[[0, 1, 2, 0]])
