"""How much memory an import and an export need, against the largest shard: measured small, extrapolated to 8B and 70B.

    python benchmarks/convert_memory.py [--scales 16 8 4] [--folder /somewhere]

For each scale k a bf16 model is made whose widths and vocabulary are those of Llama-3 8B (70B) divided by k, with as
many layers, and shards of 5 GB / k²: as many shards as the whole model has, of the same content. The tool imports and
exports it in a process of its own; what is reported is that process's largest resident set. The line through the scales
(peak = fixed + slope · largest shard) gives the peak at the full size. The bound is 2 · largest shard + 1 GB. The last
line is one JSON object.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch

from megatron_synE.checkpoint.hf.config import CONFIG_FILE, hf_config
from megatron_synE.checkpoint.hf.exporting import shards_of
from megatron_synE.checkpoint.hf.mapping import hf_shapes, parameters
from megatron_synE.checkpoint.hf.safetensors_file import write_safetensors
from megatron_synE.checkpoint.hf.source import INDEX_FILE
from megatron_synE.checkpoint.lazy_tensor import LazyTensor
from megatron_synE.config.model import PRESETS, LlamaArchitecture

TOOL = Path(__file__).resolve().parents[1] / "tools" / "convert_checkpoint.py"
FULL_SHARD_BYTES = 5_000_000_000
ALLOWANCE_BYTES = 1_000_000_000


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scales", type=int, nargs="+", default=[16, 8, 4])
    parser.add_argument("--folder", type=Path, help="on a disk with room for three copies of a model")
    options = parser.parse_args()
    result: dict[str, object] = {}
    for preset in ("llama3_8b", "llama3_70b"):
        rows = []
        for scale in sorted(options.scales, reverse=True):
            folder = Path(tempfile.mkdtemp(prefix="convert-memory-", dir=options.folder))
            try:
                rows.append(measure(folder, scaled(PRESETS[preset], scale), FULL_SHARD_BYTES // scale**2))
            finally:
                shutil.rmtree(folder)
            print_row(preset, scale, rows[-1])
        full_bytes = largest_shard(PRESETS[preset], FULL_SHARD_BYTES)
        for command in ("import", "export"):
            slope, fixed = np.polyfit([row["shard"] for row in rows], [row[command] for row in rows], 1)
            peak_bytes, bound_bytes = fixed + slope * full_bytes, 2 * full_bytes + ALLOWANCE_BYTES
            print(f"{preset} {command}: peak = {fixed / 1e6:.0f} MB + {slope:.2f} · largest shard; at full size "
                  f"{peak_bytes / 1e9:.1f} GB, bound {bound_bytes / 1e9:.1f} GB")  # fmt: skip
            result[f"{preset}_{command}_share_of_bound"] = round(peak_bytes / bound_bytes, 3)
            result[f"{preset}_{command}_slope"] = round(slope, 2)
            result[f"{preset}_{command}_peak_gb"] = round(peak_bytes / 1e9, 1)
    print(json.dumps(result))


def scaled(architecture: LlamaArchitecture, scale: int) -> LlamaArchitecture:
    """As many layers and heads, 1/scale of every width."""
    return LlamaArchitecture(
        num_layers=architecture.num_layers,
        hidden_size=architecture.hidden_size // scale,
        ffn_hidden_size=architecture.ffn_hidden_size // scale,
        num_attention_heads=architecture.num_attention_heads,
        num_query_groups=architecture.num_query_groups,
        vocab_size=architecture.vocab_size // scale,
    )


def measure(folder: Path, architecture: LlamaArchitecture, shard_bytes: int) -> dict[str, float]:
    """Bytes of the largest shard, and the peak in bytes and seconds of both commands."""
    hf_dir, checkpoint = folder / "hf", folder / "ours"
    make_model(hf_dir, architecture, shard_bytes)
    shards = [path.stat().st_size for path in hf_dir.glob("*.safetensors")]
    row: dict[str, float] = {"shard": max(shards), "shards": len(shards), "model": sum(shards)}
    places = ["--hf-dir", str(hf_dir), "--checkpoint", str(checkpoint)]
    row["import"], row["import_seconds"] = peak_of(["import", *places])
    shutil.rmtree(hf_dir)
    row["export"], row["export_seconds"] = peak_of(["export", *places, "--max-shard-size", str(shard_bytes)])
    return row


def make_model(hf_dir: Path, architecture: LlamaArchitecture, shard_bytes: int) -> None:
    """Shards, index and config.json, as an export writes them; the weights' values do not matter here."""
    hf_dir.mkdir()
    weight_map = {}
    for number, shard in enumerate(shards_of(hf_tensors(architecture), shard_bytes)):
        name = f"model-{number:05d}.safetensors"
        with open(hf_dir / name, "wb") as file:
            write_safetensors(file, shard)
        weight_map.update(dict.fromkeys((tensor.name for tensor in shard), name))
    (hf_dir / INDEX_FILE).write_text(json.dumps({"weight_map": weight_map}), encoding="utf-8")
    (hf_dir / CONFIG_FILE).write_text(json.dumps(hf_config(architecture, "bfloat16", {})), encoding="utf-8")


def hf_tensors(architecture: LlamaArchitecture) -> list[LazyTensor]:
    """The model's tensors, full of one number."""
    return [
        LazyTensor(name, shape, torch.bfloat16, lambda shape=shape: torch.full(shape, 0.01, dtype=torch.bfloat16))
        for parameter in parameters(architecture)
        for name, shape in zip(parameter.hf_names, hf_shapes(parameter, architecture), strict=True)
    ]


def largest_shard(architecture: LlamaArchitecture, limit_bytes: int) -> int:
    """Bytes of the largest shard of the full model."""
    return max(sum(t.size_bytes for t in shard) for shard in shards_of(hf_tensors(architecture), limit_bytes))


def peak_of(arguments: list[str]) -> tuple[int, float]:
    """Largest resident set of the tool in bytes, and its seconds."""
    started = time.perf_counter()
    process = subprocess.Popen([sys.executable, "-W", "ignore", str(TOOL), *arguments], stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise RuntimeError(f"{arguments[0]} ended with status {process.returncode}")
    return usage.ru_maxrss * 1024, time.perf_counter() - started


def print_row(preset: str, scale: int, row: dict[str, float]) -> None:
    """One scale."""
    bound_bytes = 2 * row["shard"] + ALLOWANCE_BYTES
    print(f"{preset} / {scale:2d}: {row['model'] / 1e6:6.0f} MB in {row['shards']:.0f} shards up to "
          f"{row['shard'] / 1e6:.0f} MB; peak of import {row['import'] / 1e6:5.0f} MB ({row['import_seconds']:.0f} s), "
          f"of export {row['export'] / 1e6:5.0f} MB ({row['export_seconds']:.0f} s); bound {bound_bytes / 1e6:5.0f} MB",
          flush=True)  # fmt: skip


if __name__ == "__main__":
    main()
