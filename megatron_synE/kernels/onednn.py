"""fp32 products of matrices by oneDNN, where torch would take MKL and MKL holds back.

torch hands bf16 products to oneDNN, fp32 ones to MKL; and MKL takes its AVX-512 path on Intel's processors only. On
others with AVX-512, oneDNN's products are twice as fast, to the same rounding errors.
"""

from __future__ import annotations

import platform

import torch

from megatron_synE.kernels import _native

REASON = "fp32 by oneDNN, for MKL uses half of this processor's vectors"


def obstacle() -> str | None:
    """Why products are better left to torch on this processor."""
    module = _native.extension("cpu")
    if module is None:
        return "no extension was built for cpu"
    if platform.machine() not in ("x86_64", "AMD64") or not torch.backends.mkl.is_available():
        return "torch does not use MKL here"
    if not torch.backends.mkldnn.is_available() or not hasattr(torch.ops.mkldnn, "_linear_pointwise"):
        return "this torch has no oneDNN"
    if module.made_by_intel() or module.instruction_set() != "avx512":
        return "MKL, which torch uses, is fast on this processor"
    return None


def product(left_MK: torch.Tensor, right_KN: torch.Tensor) -> torch.Tensor:
    """left @ right of fp32 matrices on the host, without autograd."""
    # The op that torch.compile takes for a linear layer; the second operand is transposed back by its strides alone.
    return torch.ops.mkldnn._linear_pointwise(left_MK, right_KN.t(), None, "none", [], "")
