"""Compares a Hugging Face directory with a checkpoint of ours, bit for bit, with one parameter of each in memory."""

from __future__ import annotations

from pathlib import Path

import torch

from megatron_synE.checkpoint.hf.exporting import hf_tensors
from megatron_synE.checkpoint.hf.source import HuggingFaceTensors
from megatron_synE.checkpoint.layout import read_architecture
from megatron_synE.checkpoint.whole_tensors import WholeTensors
from megatron_synE.progress import ProgressBar


def differing_tensors(hf_dir: str | Path, checkpoint: str | Path, *, source_is_hf: bool) -> list[str]:
    """Hugging Face names of the tensors that are not the same, each with what differs; empty where all are.

    Rows that an extended vocabulary of the checkpoint adds are not compared.

    Args:
        source_is_hf: which side was converted: its tensors are brought to the other side's dtype first.

    Raises:
        ValueError: a side is missing or damaged, or lacks a tensor.
    """
    theirs = HuggingFaceTensors(hf_dir)
    ours = list(hf_tensors(WholeTensors(checkpoint), read_architecture(checkpoint)))
    found = []
    with ProgressBar("comparing", sum(own.size_bytes for own in ours), "bytes") as bar:
        for own in ours:
            one, two = own.read(), theirs.read(own.name)
            if own.name in ("model.embed_tokens.weight", "lm_head.weight"):
                one = one[: len(two)]
            if source_is_hf:
                two = two.to(one.dtype)
            else:
                one = one.to(two.dtype)
            if one.shape != two.shape:
                found.append(f"{own.name}: {tuple(one.shape)} in the checkpoint, {tuple(two.shape)} in {hf_dir}")
            elif not torch.equal(_bits(one), _bits(two)):  # as bits: a NaN is equal to itself
                found.append(f"{own.name}: {int((_bits(one) != _bits(two)).sum())} of {one.numel()} numbers differ")
            bar.advance(own.size_bytes)
    return found


def _bits(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.contiguous().view(torch.int32 if tensor.dtype.itemsize == 4 else torch.int16)
