"""A run that is told to stop saves first."""

from __future__ import annotations

import signal
from types import FrameType

import torch


class StopSignal:
    """Remembers SIGTERM or SIGUSR1 (Slurm's `--signal`), so that the loop can save and leave at a step's end."""

    def __init__(self) -> None:
        self._received = False

    def install(self) -> None:
        """Catch the signals of this process."""
        for number in (signal.SIGTERM, signal.SIGUSR1):
            signal.signal(number, self._remember)

    def _remember(self, number: int, frame: FrameType | None) -> None:
        self._received = True

    def anywhere(self, device: torch.device) -> bool:
        """Whether any process was told to stop; the same answer on all of them."""
        flag = torch.tensor([int(self._received)], device=device)
        torch.distributed.all_reduce(flag, op=torch.distributed.ReduceOp.MAX)
        return bool(flag.item())
