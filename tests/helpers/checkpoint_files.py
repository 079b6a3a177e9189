"""Small checkpoints made without a model, and ways to damage them."""

from __future__ import annotations

import dataclasses
import io
import json
from pathlib import Path
from typing import Any

import torch
import xxhash

from megatron_synE.checkpoint import files, layout
from megatron_synE.checkpoint.contents import FORMAT
from megatron_synE.checkpoint.state import FORMAT_VERSION
from tests.helpers.checkpoint import TINY


def state_of(step: int) -> dict[str, Any]:
    """state.json of a checkpoint without an optimizer."""
    return {
        "format_version": FORMAT_VERSION,
        "megatron_synE_version": "0",
        "step": step,
        "architecture": dataclasses.asdict(TINY),
        "layout": {"world_size": 1},
        "has_optimizer": False,
        "optimizer_step": None,
        "consumed_samples": 8 * step,
    }


def write_checkpoint(root: Path, step: int, tensors: dict[str, torch.Tensor] | None = None, **retention: Any) -> Path:
    """Publish a checkpoint as the trainer does; each tensor of two dimensions is cut into an upper and a lower half."""
    directory = layout.prepare(root, step)
    index: dict[str, Any] = {}
    with open(directory / "__0_0.distcp", "wb") as file:
        for key, tensor in (tensors or {"weight": torch.full((4, 3), float(step))}).items():
            halves = tensor.split((tensor.shape[0] + 1) // 2) if tensor.ndim == 2 else (tensor,)
            chunks, row = [], 0
            for half in halves:
                record = io.BytesIO()
                torch.save(half.clone(), record)
                chunks.append(
                    {
                        "offsets": [row] + [0] * (tensor.ndim - 1),
                        "shape": list(half.shape),
                        "file": "__0_0.distcp",
                        "start_bytes": file.tell(),
                        "length_bytes": len(record.getvalue()),
                        "checksum": xxhash.xxh3_128_hexdigest(record.getvalue()),
                    }
                )
                file.write(record.getvalue())
                row += half.shape[0]
            dtype = str(tensor.dtype).removeprefix("torch.")
            index[key] = {"dtype": dtype, "shape": list(tensor.shape), "chunks": chunks}
    for name, content in ((files.INDEX_FILE, {"tensors": index}), (files.METADATA_FILE, FORMAT),
                          (files.STATE_FILE, state_of(step))):  # fmt: skip
        (directory / name).write_text(json.dumps(content))
    files.write_file_list(directory, {})
    return layout.publish(root, step, **retention)


def rewrite_json(path: Path, content: Any) -> None:
    """Replace a JSON file of a checkpoint, and have files.json agree: what an attacker, or a bug, would leave."""
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    files.write_file_list(path.parent, {})


def flip_bit(path: Path, bit: int) -> None:
    """Change one bit of a file in place; again, and it is as before."""
    with open(path, "r+b") as file:
        file.seek(bit // 8)
        byte = file.read(1)[0]
        file.seek(bit // 8)
        file.write(bytes([byte ^ (1 << bit % 8)]))
