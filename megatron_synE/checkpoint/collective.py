"""Work of one rank whose errors are everyone's. All functions are called by all ranks."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch


def on_rank_zero(action: Callable[[], object]) -> None:
    """Run on rank 0 while the others wait; an error there is raised everywhere, so that no rank waits for ever."""
    problem: Exception | None = None
    if torch.distributed.get_rank() == 0:
        try:
            action()
        except Exception as error:
            problem = error
    message = first_problem("" if problem is None else str(problem))
    if problem is not None:
        raise problem
    if message:
        raise ValueError(message)


def first_problem(message: str) -> str:
    """The first rank's message that is not empty, on all ranks."""
    messages: list[Any] = [None] * torch.distributed.get_world_size()
    torch.distributed.all_gather_object(messages, message)
    return next((text for text in messages if text), "")
