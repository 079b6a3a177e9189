"""Where this process's tokens stand: documents, context-parallel chunks, and the rotary tables of their positions.

Context parallelism splits a sequence into 2C equal chunks, and process r of C holds chunks r and 2C-1-r, as megatron-
core's get_batch_on_this_cp_rank does: with a causal mask, every process then has the same work.

Legend: S local tokens of a sequence, T all its tokens, B batch, N = S * B in that order, D head channels.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from megatron.core.packed_seq_params import PackedSeqParams
from megatron.core.tensor_parallel.mappings import gather_from_sequence_parallel_region
from torch.utils.weak import WeakTensorKeyDictionary

from megatron_synE.kernels import VariableLengthSpans


@dataclass(frozen=True)
class SequenceLayout:
    """What attention and RoPE need to know about the tokens of one micro-batch."""

    spans: VariableLengthSpans | None
    """Which keys each run of local queries sees; None where the local tokens are one whole sequence."""
    positions_N: torch.Tensor
    """Row of the tables for each token, int64."""
    cos_PD: torch.Tensor
    """fp32 `[positions, D / 2]`."""
    sin_PD: torch.Tensor
    """fp32 `[positions, D / 2]`."""


def chunk_begins(local_length: int, rank: int, size: int) -> list[int]:
    """Where the equal chunks that process `rank` of `size` context-parallel processes holds begin in the sequence.

    Raises:
        ValueError: the tokens do not split into two equal chunks for each process.
    """
    if size == 1:
        return [0]
    if local_length % 2:
        raise ValueError(f"parallel.context_parallel_size: {local_length * size} tokens do not divide by 2 x {size}")
    return [number * (local_length // 2) for number in (rank, 2 * size - 1 - rank)]


def document_spans(
    begins: list[int], local_length: int, cu_seqlens: torch.Tensor, longest: int
) -> VariableLengthSpans:
    """The spans of the chunks that begin at `begins`; nothing is read from the device.

    Args:
        cu_seqlens: int32 boundaries of the documents of the whole sequence.
        longest: tokens of the longest document, or more.
    """
    if len(begins) == 1:
        return VariableLengthSpans(cu_seqlens, cu_seqlens, longest, longest, (local_length,))
    chunk = local_length // len(begins)
    ends = [begin + chunk for begin in begins]
    queries, keys, keys_before = [], [], 0
    for place, (begin, end) in enumerate(zip(begins, ends, strict=True)):
        queries.append(cu_seqlens.clamp(begin, end) + (place * chunk - begin))
        keys.append(cu_seqlens.clamp(max=end) + keys_before)
        keys_before += end
    # The end of one chunk's boundaries is the beginning of the next one's.
    cu_seqlens_q, cu_seqlens_k = (torch.cat([rows[0], *(row[1:] for row in rows[1:])]) for rows in (queries, keys))
    longest_q, longest_k = min(longest, chunk), min(longest, max(ends))
    return VariableLengthSpans(cu_seqlens_q, cu_seqlens_k, longest_q, longest_k, tuple(ends))


def document_positions(begins: list[int], local_length: int, cu_seqlens: torch.Tensor | None, device: torch.device
                       ) -> torch.Tensor:  # fmt: skip
    """int64 `[local_length]`: the place of each local token in its document, counted from 0."""
    chunk = local_length // len(begins)
    places = torch.cat([torch.arange(begin, begin + chunk, device=device) for begin in begins])
    if cu_seqlens is None:
        return places
    boundaries = cu_seqlens.long()
    return places - boundaries[torch.searchsorted(boundaries, places, right=True) - 1]


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
    assert packed_seq_params is None or batch == 1, "packed documents stand in one row"
    begins = chunk_begins(seq_length, rank, size)
    total = seq_length * size
    spans, cu_seqlens = None, None
    if packed_seq_params is not None:
        cu_seqlens = packed_seq_params.cu_seqlens_q
        spans = document_spans(begins, seq_length, cu_seqlens, packed_seq_params.max_seqlen_q or total)
    elif size > 1:
        whole = torch.arange(2, dtype=torch.int32, device=angles.device) * total
        spans = document_spans(begins, seq_length, whole, total)
    positions_S = document_positions(begins, seq_length, cu_seqlens, angles.device)
    positions_N = positions_S[:, None].expand(-1, batch).flatten()
    layout = SequenceLayout(spans, positions_N, angles.cos(), angles.sin())
    _layouts[key] = ((seq_length, batch), layout)
    return layout


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
