"""Products of matrices by the fastest library that this machine has for them.

Legend: M rows, N columns, K summed.
"""

from __future__ import annotations

import torch

from megatron_synE.kernels import onednn
from megatron_synE.kernels.selection import is_compiled

# Multiplications below which a call of oneDNN costs more than it saves (15 microseconds on a 4 GHz core).
FEWEST_MULTIPLICATIONS = 2**22


def product(left_MK: torch.Tensor, right_KN: torch.Tensor) -> torch.Tensor:
    """left @ right, without autograd; the operands may have any strides.

    Errors and dtypes are those of torch.mm, whose result this is up to the order in which its sums are taken.
    """
    if takes_onednn(left_MK, right_KN):
        return onednn.product(left_MK, right_KN)
    return torch.mm(left_MK, right_KN)


def takes_onednn(left_MK: torch.Tensor, right_KN: torch.Tensor) -> bool:
    """Whether `product` leaves torch's own way for these operands."""
    if left_MK.dtype != torch.float32 or right_KN.dtype != torch.float32:
        return False
    large = left_MK.shape[0] * left_MK.shape[1] * right_KN.shape[1] >= FEWEST_MULTIPLICATIONS
    return large and is_compiled("product", left_MK, right_KN)
