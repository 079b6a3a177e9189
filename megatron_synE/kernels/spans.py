"""Which keys each run of queries sees, as numbers of the host and as tensors of the device.

Legend: S queries, T keys, n runs of queries.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate
from typing import NamedTuple

import torch


class Span(NamedTuple):
    """Queries [query_begin, query_end) attend causally to keys [key_begin, key_end); their last positions coincide."""

    query_begin: int
    query_end: int
    key_begin: int
    key_end: int


@dataclass(frozen=True, eq=False)
class VariableLengthSpans:
    """n spans in the form of variable-length attention: a GPU reads the boundaries, and the host never waits for them.

    Spans that share keys (context-parallel chunks do) cannot be written as boundaries of one row of keys. So the
    boundaries are those of several rows, laid end to end: row i holds the first `key_ends[i]` of the T keys, and as
    many spans as each other row. A span without queries stands for nothing.
    """

    cu_seqlens_q: torch.Tensor
    """int32 `[n + 1]`, from 0 to S."""
    cu_seqlens_k: torch.Tensor
    """int32 `[n + 1]`, from 0 to `sum(key_ends)`."""
    max_seqlen_q: int
    """At least the queries of the longest span."""
    max_seqlen_k: int
    """At least the keys of the longest span."""
    key_ends: tuple[int, ...]

    @cached_property
    def on_host(self) -> list[Span]:
        """The spans that have queries; on a GPU this waits for the device."""
        queries, keys = self.cu_seqlens_q.tolist(), self.cu_seqlens_k.tolist()
        spans_of_row = (len(queries) - 1) // len(self.key_ends)
        row_begins = [begin for begin in accumulate(self.key_ends[:-1], initial=0) for _ in range(spans_of_row)]
        return [
            Span(queries[i], queries[i + 1], keys[i] - row, keys[i + 1] - row)
            for i, row in enumerate(row_begins)
            if queries[i] < queries[i + 1]
        ]

    def key_rows(self, keys_T: torch.Tensor) -> torch.Tensor:
        """The rows of keys, end to end along the first dimension; the T keys themselves where one row holds all."""
        if self.key_ends == (keys_T.shape[0],):
            return keys_T
        return torch.cat([keys_T.narrow(0, 0, end) for end in self.key_ends])
