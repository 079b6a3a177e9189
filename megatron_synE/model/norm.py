"""RMSNorm for megatron-core's layers. Shapes: S sequence, B batch, H hidden."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from megatron.core.transformer.transformer_config import TransformerConfig


class RMSNorm(torch.nn.Module):
    """RMSNorm (arXiv 1910.07467), in plain torch.

    Unlike megatron-core's torch norm it works under sequence parallelism: each process then sees its part of the
    sequence, and the mark on the weight makes megatron-core sum the weight's gradient over the processes.
    """

    def __init__(self, config: TransformerConfig, hidden_size: int, eps: float = 1e-5) -> None:
        super().__init__()
        self.eps = eps
        self.weight = torch.nn.Parameter(
            torch.ones(hidden_size, dtype=config.params_dtype, device=torch.cuda.current_device())
        )
        self.weight.sequence_parallel = config.sequence_parallel  # type: ignore[attr-defined]

    def forward(self, hidden_SBH: torch.Tensor) -> torch.Tensor:
        """`[S, B, H]` → `[S, B, H]`; computed in fp32."""
        return F.rms_norm(hidden_SBH.float(), self.weight.shape, self.weight.float(), self.eps).type_as(hidden_SBH)
