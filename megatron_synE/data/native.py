"""The operations that the compiled `megatron_synE._index` does, or numpy where it was not built.

Chosen once, at the first call of `implementation`; tests pass a module of their own.
"""

from __future__ import annotations

import functools
import importlib
import logging
import weakref
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from megatron_synE.data import fallback

logger = logging.getLogger(__name__)


@functools.cache
def implementation() -> ModuleType:
    """The compiled module, or the numpy fallback (said once)."""
    try:
        return importlib.import_module("megatron_synE._index")
    except ImportError:
        logger.warning("megatron_synE._index is not built: the data stream uses numpy, which is slower to start")
        return fallback


def period_table(numerators: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """One period of a mixture.

    Args: numerators int64[C], not negative; their sum Q is the period, at most 2^30.
    Returns: component uint16[Q], and rank int32[Q]: how many earlier entries name the same component. Every prefix of
        k entries holds component c within 1 - 1/(2n - 2) of k·numerators[c]/Q times, n of the C being positive
        (R. Tijdeman, The chairman assignment problem, Discrete Mathematics 32, 1980).
    """
    return implementation().period_table(np.ascontiguousarray(numerators, np.int64))


def locate(
    offsets: np.ndarray, component: np.ndarray, rank: np.ndarray, numerators: np.ndarray, cursors: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Component int32[K] and sample index in it int64[K], of offsets int64[K] into a segment whose components start at
    cursors int64[C]."""
    return implementation().locate(np.ascontiguousarray(offsets, np.int64), component, rank, numerators, cursors)


def hash_documents(tokens: np.ndarray, starts: np.ndarray) -> np.ndarray:
    """uint64[D] hashes of the token values of documents [starts[d], starts[d+1]); starts int64[D+1], in tokens.

    The integer type that stores the tokens does not matter. uint16 and int32 are read in place.
    """
    tokens = np.asarray(tokens)
    if tokens.dtype not in (np.uint16, np.int32):
        tokens = tokens.astype(np.int32)
    return implementation().hash_documents(tokens, np.ascontiguousarray(starts, np.int64))


def sort_documents(keys: np.ndarray) -> np.ndarray:
    """Stable ascending argsort int32[D] of keys uint64[D]."""
    return implementation().sort_documents(np.ascontiguousarray(keys, np.uint64))


def gather(
    tokens: np.ndarray,
    sequence_offsets: np.ndarray,
    boundaries: np.ndarray,
    order: np.ndarray,
    ends: np.ndarray,
    offset: int,
    out: np.ndarray,
) -> np.ndarray:
    """Copy len(out) tokens from token `offset` of an order of documents into out int64[N].

    Args: tokens uint16 or int32, sequence_offsets int64[S] (bytes) and boundaries int64[D+1] of the corpus;
        order int32[P] of document numbers, ends int64[P+1] their cumulative lengths in tokens.
    Returns: int32[·], the places in `out` where a document starts. IndexError when a read leaves the order or file.
    """
    return implementation().gather(tokens, sequence_offsets, boundaries, order, ends, offset, out)


def watch(mapped: np.memmap[Any, Any], path: Path) -> None:
    """Have a SIGBUS in this mapping named on stderr before the process dies of it: the file was truncated under us."""
    slot = implementation().watch_mapping(mapped.ctypes.data, mapped.nbytes, str(path))
    weakref.finalize(mapped._mmap, implementation().forget_mapping, slot).atexit = False  # type: ignore[attr-defined]
