"""Inverse frequencies of RoPE, with Llama-3.1's scaling."""

from __future__ import annotations

import math

import torch

from megatron_synE.config.model import LlamaArchitecture


def inverse_frequencies(architecture: LlamaArchitecture, device: torch.device) -> torch.Tensor:
    """`[head_dim / 2]` fp32: base^(-2i/d) (arXiv 2104.09864, eq. 15), its low frequencies stretched as Llama-3.1 does.

    megatron-core has the same formula with fixed constants; HF configs name all four, so all four count here.
    """
    dim = architecture.head_dim
    exponents = torch.arange(0, dim, 2, dtype=torch.float32, device=device) / dim
    frequencies = 1.0 / architecture.rotary_base**exponents
    scaling = architecture.rope_scaling
    if scaling is None:
        return frequencies
    turns = scaling.original_max_position_embeddings * frequencies / (2 * math.pi)
    # 0 where a wavelength is too long for the old context (stretch), 1 where it is short (keep), linear between.
    keep = (turns - scaling.low_freq_factor) / (scaling.high_freq_factor - scaling.low_freq_factor)
    keep = keep.clamp(0.0, 1.0)
    return keep * frequencies + (1 - keep) * frequencies / scaling.factor
