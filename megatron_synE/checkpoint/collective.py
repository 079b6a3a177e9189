"""Work of some ranks whose errors are everyone's. All functions are called by all ranks."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import torch

T = TypeVar("T")


def on_rank_zero(action: Callable[[], object]) -> None:
    """Run on rank 0 while the others wait; an error there is raised everywhere, so that no rank waits for ever."""
    together(action if torch.distributed.get_rank() == 0 else lambda: None)


def together(action: Callable[[], T]) -> T:
    """Run on every rank; where any of them fails, all raise the same error: the first rank's that has one."""
    result: Any = None
    problem: Exception | None = None
    try:
        result = action()
    except Exception as error:
        problem = error
    raise_first(problem)
    return result


def raise_first(problem: Exception | None) -> None:
    """Raise the error of the first rank that has one, on all ranks; None is none."""
    problems: list[Any] = [None] * torch.distributed.get_world_size()
    torch.distributed.all_gather_object(problems, None if problem is None else _portable(problem))
    first = next((found for found in problems if found is not None), None)
    if first is not None:
        raise first from problem


def first_problem(message: str) -> str:
    """The first rank's message that is not empty, on all ranks."""
    messages: list[Any] = [None] * torch.distributed.get_world_size()
    torch.distributed.all_gather_object(messages, message)
    return next((text for text in messages if text), "")


def _portable(error: Exception) -> Exception:
    """An error that survives the way to another process: kinds that callers tell apart are kept, if their text is all.

    Others take whatever arguments they like.
    """
    for kind in (*type(error).__mro__,):
        if kind in (OSError, ValueError, FloatingPointError, RuntimeError) or kind.__module__.startswith(_OWN):
            return kind(str(error))
    return RuntimeError(f"{type(error).__name__}: {error}")


_OWN = "megatron_synE."
