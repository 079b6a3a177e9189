"""Keys and values of earlier passes, seen by tokens of later ones: shared beginnings are computed once, texts go on.

The tokens of a pass stand packed in one row, whatever sequences they belong to, without padding between them. Each run
of them sees the keys that its sequence has in the cache, and its own. A cache has slots of one token each; whoever
makes the passes says which slots a token's key is kept in and which ones it sees, so that branches share their stem.

Legend: N tokens of a pass, T keys seen by all their runs, P slots, G key/value heads of this process, R query heads of
each, D head channels.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import torch
from megatron.core.packed_seq_params import PackedSeqParams

from megatron_synE.kernels import (
    VariableLengthSpans,
    merge_,
    partial_attention,
    takes_variable_lengths,
    torch_causal_attention,
)


class KeyValueCache:
    """The keys and values of all layers of this process; memory is taken when a layer first keeps something."""

    def __init__(self, num_slots: int) -> None:
        self.num_slots = num_slots
        self._by_layer: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}

    def grow(self, num_slots: int) -> None:
        """Have room for more; what is kept stays."""
        for layer_number, kept in self._by_layer.items():
            larger = tuple(old.new_empty(num_slots, *old.shape[1:]) for old in kept)
            for new, old in zip(larger, kept, strict=True):
                new[: len(old)] = old
            self._by_layer[layer_number] = larger  # type: ignore[assignment]
        self.num_slots = num_slots

    def keep(self, layer_number: int, key_NGD: torch.Tensor, value_NGD: torch.Tensor, slots_N: torch.Tensor) -> None:
        """Put keys and values into these slots of a layer."""
        if layer_number not in self._by_layer:
            shape_PGD = (self.num_slots, *key_NGD.shape[1:])
            self._by_layer[layer_number] = key_NGD.new_empty(shape_PGD), value_NGD.new_empty(shape_PGD)
        for kept_PGD, new_NGD in zip(self._by_layer[layer_number], (key_NGD, value_NGD), strict=True):
            kept_PGD.index_copy_(0, slots_N, new_NGD)

    def of(self, layer_number: int, slots_T: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Keys and values `[T, G, D]` in these slots of a layer."""
        key_PGD, value_PGD = self._by_layer[layer_number]
        return key_PGD.index_select(0, slots_T), value_PGD.index_select(0, slots_T)


class Keys(NamedTuple):
    """Tokens [begin, end) of a pass see the keys and values in these slots."""

    begin: int
    end: int
    slots_T: torch.Tensor
    """int64."""


@dataclass(kw_only=True)
class CachedTokens(PackedSeqParams):
    """What attention and RoPE need to know about the tokens of a pass.

    It goes the way of megatron-core's packed sequences, to every layer; its format lets megatron-core's own attention
    treat the tokens as one sequence, of which only RoPE and the attention core know better.
    """

    cache: KeyValueCache
    positions_N: torch.Tensor
    """int64: place of each token in its sequence."""
    slots_N: torch.Tensor
    """int64: where its key and value are kept; what no token sees later may share a slot."""
    stems: list[Keys]
    """What several runs see whole, the earlier in a sequence first; a run is inside a stem's tokens, or outside."""
    runs: list[Keys]
    """The runs of tokens, without gaps, and what each sees beside its stems: its own keys, causally, at the end."""

    def attend(
        self, layer_number: int, query_NGRD: torch.Tensor, key_NGD: torch.Tensor, value_NGD: torch.Tensor,
        scale: float, *, plain: bool = False,
    ) -> torch.Tensor:  # fmt: skip
        """`[N, G, R, D]`: what each token sees in all keys of its sequence up to its own.

        Args:
            plain: by torch's own kernels only.
        """
        self.cache.keep(layer_number, key_NGD, value_NGD, self.slots_N)
        if takes_variable_lengths(query_NGRD.unsqueeze(1), key_NGD.unsqueeze(1), value_NGD.unsqueeze(1)):
            return self._in_one_call(layer_number, query_NGRD, scale)
        context_NGRD = torch.empty_like(query_NGRD, dtype=torch.float32)
        logsumexp_NGR = context_NGRD.new_empty(context_NGRD.shape[:3])
        for begin, end, slots_T in self.runs:
            seen = self.cache.of(layer_number, slots_T)
            part = partial_attention(query_NGRD[begin:end], *seen, scale, is_causal=True, plain=plain)
            context_NGRD[begin:end], logsumexp_NGR[begin:end] = part
        for begin, end, slots_T in self.stems:
            seen = self.cache.of(layer_number, slots_T)
            part = partial_attention(query_NGRD[begin:end], *seen, scale, is_causal=False, plain=plain)
            merge_(context_NGRD[begin:end], logsumexp_NGR[begin:end], *part)
        return context_NGRD.to(query_NGRD.dtype)

    def _in_one_call(self, layer_number: int, query_NGRD: torch.Tensor, scale: float) -> torch.Tensor:
        """With the keys of stems copied for each run, so that a GPU is told once what to do."""
        slots_T, spans = self._laid_out
        key_TGD, value_TGD = self.cache.of(layer_number, slots_T)
        # All are in one row, so the batch is 1.
        context_N1GRD = torch_causal_attention(
            query_NGRD.unsqueeze(1), key_TGD.unsqueeze(1), value_TGD.unsqueeze(1), scale, spans
        )
        return context_N1GRD.squeeze(1)

    @cached_property
    def _laid_out(self) -> tuple[torch.Tensor, VariableLengthSpans]:
        """The slots of all that each run sees, run after run, and where each begins."""
        seen = [
            [*(stem.slots_T for stem in self.stems if stem.begin <= run.begin and run.end <= stem.end), run.slots_T]
            for run in self.runs
        ]
        num_queries = [run.end - run.begin for run in self.runs]
        num_keys = [sum(map(len, parts)) for parts in seen]
        slots_T = torch.cat([part for parts in seen for part in parts])
        cu_seqlens_q, cu_seqlens_k = (
            torch.tensor([0, *counts]).cumsum(0).to(torch.int32).to(slots_T.device)
            for counts in (num_queries, num_keys)
        )
        spans = VariableLengthSpans(cu_seqlens_q, cu_seqlens_k, max(num_queries), max(num_keys), (len(slots_T),))
        return slots_T, spans


def cached_tokens(
    cache: KeyValueCache, positions_N: torch.Tensor, slots_N: torch.Tensor, stems: list[Keys], runs: list[Keys],
    max_length_tokens: int,
) -> CachedTokens:  # fmt: skip
    """CachedTokens of sequences that are no longer than `max_length_tokens`."""
    return CachedTokens(
        qkv_format="sbhd", max_seqlen_q=max_length_tokens, max_seqlen_kv=max_length_tokens, cache=cache,
        positions_N=positions_N, slots_N=slots_N, stems=stems, runs=runs,
    )  # fmt: skip
