"""Number formats of compute, gradients and parameters."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class PrecisionConfig:
    """bf16 keeps fp32 main parameters in the optimizer; fp32 is for checks and small machines."""

    dtype: Literal["bf16", "fp32"] = "bf16"
    """Format of parameters and activations."""
    grad_reduce_in_fp32: bool = True
    """Accumulate and reduce gradients in fp32 (Megatron: accumulate_allreduce_grads_in_fp32)."""
    fp8: Literal["none", "hybrid", "e4m3"] = "none"
    """Transformer Engine's 8-bit matrix products: hybrid is e4m3 forward and e5m2 backward."""
    fp8_recipe: Literal["delayed", "tensorwise"] = "delayed"
    """How FP8 scales are found: from the history of maxima, or from the current tensor."""
    fp8_amax_history_len: int = 1024
    """Steps of history of delayed scaling."""

    def problems(self) -> list[str]:
        """Contradictions among these fields."""
        if self.fp8 != "none" and self.dtype != "bf16":
            return ["precision.fp8: needs precision.dtype bf16"]
        return []
