"""Where this process's tokens stand: documents, context-parallel chunks, and the rotary tables of their positions.

Context parallelism splits a sequence into 2C equal chunks, and process r of C holds chunks r and 2C-1-r, as megatron-
core's get_batch_on_this_cp_rank does: with a causal mask, every process then has the same work.

Legend: S local tokens of a sequence, T all its tokens, B batch, N = S * B in that order, D head channels.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import torch
from megatron.core.packed_seq_params import PackedSeqParams
from megatron.core.tensor_parallel.mappings import gather_from_sequence_parallel_region
from torch.utils.weak import WeakTensorKeyDictionary

from megatron_synE.kernels import Span


@dataclass(frozen=True)
class SequenceLayout:
    """What attention and RoPE need to know about the tokens of one micro-batch."""

    spans: list[Span]
    """Which keys each run of local queries sees."""
    positions_N: torch.Tensor
    """Row of the tables for each token, int64."""
    cos_PD: torch.Tensor
    """fp32 `[positions, D / 2]`."""
    sin_PD: torch.Tensor
    """fp32 `[positions, D / 2]`."""


def document_spans(local_length: int, rank: int, size: int, boundaries: list[int] | None) -> list[Span]:
    """The spans of process `rank` of `size` context-parallel processes that hold `local_length` tokens each.

    Args:
        boundaries: cumulative document lengths of the whole sequence (cu_seqlens), or None for one document.

    Raises:
        ValueError: the tokens do not split into two equal chunks for each process.
    """
    total = local_length * size
    if size > 1 and local_length % 2:
        raise ValueError(f"parallel.context_parallel_size: {total} tokens do not divide by 2 x {size}")
    boundaries = [0, total] if boundaries is None else boundaries
    assert boundaries[0] == 0 and boundaries[-1] == total, "cu_seqlens must cover the whole sequence"
    chunk = local_length // 2 if size > 1 else local_length
    owned = [rank, 2 * size - 1 - rank] if size > 1 else [0]
    spans = []
    for place, number in enumerate(owned):
        begin, end, shift = number * chunk, (number + 1) * chunk, (place - number) * chunk
        for first, last in pairwise(boundaries):
            start, stop = max(begin, first), min(end, last)
            if start < stop:
                spans.append(Span(start + shift, stop + shift, first, stop))
    return spans


_layouts = WeakTensorKeyDictionary()


def sequence_layout(
    rotary_pos_emb: torch.Tensor,
    packed_seq_params: PackedSeqParams | None,
    seq_length: int,
    batch: int,
    cp_group: torch.distributed.ProcessGroup,
) -> SequenceLayout:
    """The layout of `seq_length` local tokens of `batch` sequences; found once for all layers of a micro-batch.

    `rotary_pos_emb` holds megatron-core's angles `[P, 1, 1, D]` of the positions of a whole sequence or document.
    """
    key = rotary_pos_emb if packed_seq_params is None else packed_seq_params.cu_seqlens_q
    known = _layouts.get(key)
    if known is not None and known[0] == (seq_length, batch):
        return known[1]
    angles = rotary_pos_emb[:, 0, 0, : rotary_pos_emb.shape[-1] // 2].float()
    size, rank = cp_group.size(), cp_group.rank()
    boundaries = None if packed_seq_params is None else packed_seq_params.cu_seqlens_q.tolist()
    assert boundaries is None or batch == 1, "packed documents stand in one row"
    spans = document_spans(seq_length, rank, size, boundaries)
    runs = [torch.arange(s.query_end - s.query_begin) + _first_position(s) for s in spans]
    positions = torch.cat(runs).to(angles.device).repeat_interleave(batch)
    layout = SequenceLayout(spans, positions, angles.cos(), angles.sin())
    _layouts[key] = ((seq_length, batch), layout)
    return layout


def _first_position(span: Span) -> int:
    return (span.key_end - span.key_begin) - (span.query_end - span.query_begin)


def gather_sequence(tensor_S: torch.Tensor, cp_group: torch.distributed.ProcessGroup) -> torch.Tensor:
    """All processes' tokens along the first dimension, in the order of the sequence; sums gradients backward.

    Keys and values of grouped-query attention are small, so gathering them (as Llama 3's training did,
    arXiv 2407.21783, section 3.3.2) costs little and keeps attention itself unchanged.
    """
    if cp_group.size() == 1:
        return tensor_S
    gathered = gather_from_sequence_parallel_region(tensor_S, tensor_parallel_output_grad=True, group=cp_group)
    chunks = gathered.unflatten(0, (cp_group.size(), 2, -1))
    return torch.cat((chunks[:, 0].flatten(0, 1), chunks[:, 1].flip(0).flatten(0, 1)))
