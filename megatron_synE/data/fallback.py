"""The operations of `megatron_synE._index` in numpy, for machines without a compiler, and the oracle of its tests."""

from __future__ import annotations

import faulthandler
import heapq
import itertools

import numpy as np

BLOCK_TOKENS = 512


def period_table(numerators: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """See `native.period_table`."""
    shares = [int(n) for n in numerators]
    period, num_positive = sum(shares), sum(n > 0 for n in shares)
    component, rank = np.empty(period, np.uint16), np.empty(period, np.int32)
    if num_positive == 1:
        component[:] = next(c for c, n in enumerate(shares) if n > 0)
        rank[:] = np.arange(period)
        return component, rank
    # Windows of Tijdeman's bound: sample j of c may be number k when j + 1/m <= share·k, up to share·k > j + 1 - 1/m.
    m, counts = 2 * num_positive - 2, [0] * len(shares)
    released: dict[int, list[int]] = {}
    ready: list[tuple[int, int]] = []

    def announce(c: int, now: int) -> None:
        j, n = counts[c], shares[c]
        if j == n:
            return
        release = -(-period * (j * m + 1) // (m * n))
        if release <= now:
            heapq.heappush(ready, (period * ((j + 1) * m - 1) // (m * n) + 1, c))
        else:
            released.setdefault(release, []).append(c)

    for c in range(len(shares)):
        announce(c, 0)
    for k in range(1, period + 1):
        for c in released.pop(k, ()):
            announce(c, k)
        _, c = heapq.heappop(ready)
        component[k - 1], rank[k - 1] = c, counts[c]
        counts[c] += 1
        announce(c, k)
    return component, rank


def locate(
    offsets: np.ndarray, component: np.ndarray, rank: np.ndarray, numerators: np.ndarray, cursors: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """See `native.locate`."""
    if offsets.size and offsets.min() < 0:
        raise ValueError("locate: negative offset")
    turn, place = np.divmod(offsets, len(component))
    found = component[place]
    return found.astype(np.int32), cursors[found] + turn * numerators[found] + rank[place]


def mix(x: np.ndarray) -> np.ndarray:
    """Finaliser of splitmix64 (Steele, Lea, Flood 2014) on uint64[N]."""
    x = x ^ (x >> np.uint64(30))
    x = x * np.uint64(0xBF58476D1CE4E5B9)
    x = x ^ (x >> np.uint64(27))
    x = x * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def hash_documents(tokens: np.ndarray, starts: np.ndarray) -> np.ndarray:
    """See `native.hash_documents`."""
    keys = mix(np.arange(1, BLOCK_TOKENS + 1, dtype=np.uint64)).astype(np.uint32)
    hashes = mix(np.diff(starts).astype(np.uint64))
    for document, (start, end) in enumerate(itertools.pairwise(starts.tolist())):
        for at in range(start, end, BLOCK_TOKENS):
            block = tokens[at : min(at + BLOCK_TOKENS, end)].astype(np.uint32)
            block = np.append(block, np.zeros(len(block) % 2, np.uint32))
            keyed = (block + keys[: len(block)]).astype(np.uint64)
            total = (keyed[0::2] * keyed[1::2]).sum(dtype=np.uint64)
            hashes[document : document + 1] = mix(hashes[document : document + 1] ^ total)
    return hashes


def sort_documents(keys: np.ndarray) -> np.ndarray:
    """See `native.sort_documents`."""
    return np.argsort(keys, kind="stable").astype(np.int32)


def gather(
    tokens: np.ndarray,
    sequence_offsets: np.ndarray,
    boundaries: np.ndarray,
    order: np.ndarray,
    ends: np.ndarray,
    offset: int,
    out: np.ndarray,
) -> np.ndarray:
    """See `native.gather`."""
    count = len(out)
    if offset < 0 or offset + count > ends[-1]:
        raise IndexError(f"gather: tokens {offset} and {count} more leave an order of {ends[-1]}")
    starts = []
    place, done = int(np.searchsorted(ends, offset, side="right")) - 1, 0
    while done < count:
        within = offset + done - int(ends[place])
        if within == 0:
            starts.append(done)
        length = min(int(ends[place + 1] - ends[place]) - within, count - done)
        start = int(sequence_offsets[boundaries[order[place]]]) // tokens.itemsize + within
        if start + length > len(tokens):
            raise IndexError("gather: a document leaves the .bin file")
        out[done : done + length] = tokens[start : start + length]
        done, place = done + length, place + 1
    return np.array(starts, np.int32)


def watch_mapping(start: int, num_bytes: int, path: str) -> int:
    """See `native.watch`: a SIGBUS cannot be given a file's name here, but is never silent."""
    if not faulthandler.is_enabled():
        faulthandler.enable()
    return -1


def forget_mapping(slot: int) -> None:
    """See `native.watch`."""
