"""All spans in one call of torch's variable-length flash attention, on a GPU.

Legend: S queries, T keys, B batch, G key/value heads, R query heads per group, D head dimension.
"""

from __future__ import annotations

import inspect
from functools import cache

import torch

from megatron_synE.kernels.spans import VariableLengthSpans

MAX_HEAD_DIM = 256


@cache
def obstacle() -> str | None:
    """Why this torch cannot run it on this GPU, or None.

    torch has it since 2.10, but without a scale or grouped key/value heads at first.
    """
    try:
        from torch.nn.attention.varlen import varlen_attn
    except ImportError:
        return f"torch {torch.__version__} has no torch.nn.attention.varlen"
    lacking = {"scale", "window_size", "enable_gqa"} - set(inspect.signature(varlen_attn).parameters)
    if lacking:
        return f"varlen_attn of torch {torch.__version__} has no {', '.join(sorted(lacking))}"
    if not torch.backends.cuda.is_flash_attention_available():
        return f"torch {torch.__version__} was built without flash attention"
    if not torch.cuda.is_available():
        return "there is no GPU"
    if torch.cuda.get_device_capability() < (8, 0):
        return "flash attention needs compute capability 8.0"
    return None


def takes_variable_lengths(query_SBGRD: torch.Tensor, key_TBGD: torch.Tensor, value_TBGD: torch.Tensor) -> bool:
    """Whether the call below can run on these tensors: 16-bit, of one GPU, heads that flash attention takes."""
    dim = query_SBGRD.shape[-1]
    tensors = (query_SBGRD, key_TBGD, value_TBGD)
    return (
        all(t.is_cuda and t.dtype == query_SBGRD.dtype and t.device == query_SBGRD.device for t in tensors)
        and query_SBGRD.dtype in (torch.bfloat16, torch.float16)
        and dim % 8 == 0
        and dim <= MAX_HEAD_DIM
        and obstacle() is None
    )


def variable_length_attention(
    query_SBGRD: torch.Tensor,
    key_TBGD: torch.Tensor,
    value_TBGD: torch.Tensor,
    scale: float,
    spans: VariableLengthSpans,
) -> torch.Tensor:
    """softmax(scale * Q K^T, causal within each span) V as [S, B, G, R, D], without a word from the device.

    The B sequences have the same spans, so they are heads to the kernel: [S, B, ..., D] is already what it reads.
    Causal there means what it means in `Span`: the last query and the last key of a span coincide.
    """
    from torch.nn.attention.varlen import varlen_attn

    context = varlen_attn(
        query_SBGRD.flatten(1, 3),
        spans.key_rows(key_TBGD).flatten(1, 2),
        spans.key_rows(value_TBGD).flatten(1, 2),
        spans.cu_seqlens_q,
        spans.cu_seqlens_k,
        spans.max_seqlen_q,
        spans.max_seqlen_k,
        scale=scale,
        window_size=(-1, 0),
        enable_gqa=query_SBGRD.shape[3] > 1,
    )
    assert isinstance(context, torch.Tensor)
    return context.view(query_SBGRD.shape)
