"""Where the tokenizer of a checkpoint is."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from megatron_synE.checkpoint.layout import read_state, resolve

TOKENIZER_DIRECTORY = "tokenizer"
"""Beside the step folders."""


def find_tokenizer(checkpoint: Path) -> Path | None:
    """The tokenizer's directory: beside the checkpoint, beside the one its run started from, or the HF model itself."""
    directory = resolve(checkpoint)
    started_from: dict[str, Any] = (read_state(directory).get("config") or {}).get("checkpoint") or {}
    candidates = [directory.parent / TOKENIZER_DIRECTORY]
    if started_from.get("load"):
        candidates += [Path(started_from["load"]) / TOKENIZER_DIRECTORY]
        candidates += [Path(started_from["load"]).parent / TOKENIZER_DIRECTORY]
    if started_from.get("init_from_hf"):
        candidates.append(Path(started_from["init_from_hf"]))
    return next((candidate for candidate in candidates if candidate.is_dir()), None)
