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
    """8-bit matrix products in the layers: hybrid is e4m3 forward and e5m2 for gradients. With model.transformer_impl
    transformer_engine they are its own, with fused those of torch (tensorwise only)."""
    fp8_recipe: Literal["delayed", "tensorwise"] = "delayed"
    """How FP8 scales are found: from the history of maxima, or from the current tensor."""
    first_last_layers_bf16: bool = False
    """Leave the first and last layers out of fp8 (tensorwise only)."""
    num_layers_at_start_in_bf16: int = 1
    """How many first layers that are."""
    num_layers_at_end_in_bf16: int = 1
    """How many last layers that are."""
    fp8_amax_history_len: int = 1024
    """Steps of history of delayed scaling."""

    def problems(self) -> list[str]:
        """Contradictions among these fields."""
        found = []
        if self.fp8 != "none" and self.dtype != "bf16":
            found.append("precision.fp8: needs precision.dtype bf16")
        if self.first_last_layers_bf16 and (self.fp8 == "none" or self.fp8_recipe != "tensorwise"):
            found.append("precision.first_last_layers_bf16: needs precision.fp8 with precision.fp8_recipe tensorwise")
        for name in ("num_layers_at_start_in_bf16", "num_layers_at_end_in_bf16"):
            if getattr(self, name) < 0:
                found.append(f"precision.{name}: {getattr(self, name)} is negative; use 0 or more")
        return found

    def is_bf16_layer(self, number: int, num_layers: int) -> bool:
        """Whether layer `number` (from 0) of all `num_layers` is left out of fp8."""
        if not self.first_last_layers_bf16:
            return False
        return number < self.num_layers_at_start_in_bf16 or number >= num_layers - self.num_layers_at_end_in_bf16
