"""Checkpoints of a run, and Hugging Face Llama in both directions. Reading the state of one needs no torch."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from megatron_synE.checkpoint.contents import quick_check
from megatron_synE.checkpoint.files import DamagedCheckpoint
from megatron_synE.checkpoint.layout import find_latest, read_state, resume_candidates, resume_notes

if TYPE_CHECKING:
    from megatron_synE.checkpoint.finite import NonFiniteState
    from megatron_synE.checkpoint.hf.config import architecture_from_hf
    from megatron_synE.checkpoint.hf.importing import init_from_hf
    from megatron_synE.checkpoint.rng import collect_rng_state, restore_rng_state
    from megatron_synE.checkpoint.sharded import AsyncCheckpointer, LoadedState, load_checkpoint, save_checkpoint

_NEEDS_TORCH = {
    "AsyncCheckpointer": "sharded",
    "LoadedState": "sharded",
    "NonFiniteState": "finite",
    "architecture_from_hf": "hf.config",
    "collect_rng_state": "rng",
    "init_from_hf": "hf.importing",
    "load_checkpoint": "sharded",
    "restore_rng_state": "rng",
    "save_checkpoint": "sharded",
}

__all__ = [
    "AsyncCheckpointer",
    "DamagedCheckpoint",
    "LoadedState",
    "NonFiniteState",
    "architecture_from_hf",
    "collect_rng_state",
    "find_latest",
    "init_from_hf",
    "load_checkpoint",
    "quick_check",
    "read_state",
    "restore_rng_state",
    "resume_candidates",
    "resume_notes",
    "save_checkpoint",
]


def __getattr__(name: str) -> Any:
    if name in _NEEDS_TORCH:
        return getattr(importlib.import_module(f"{__name__}.{_NEEDS_TORCH[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
