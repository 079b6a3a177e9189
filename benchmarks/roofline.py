"""What a training step of Llama-3 8B has to do, op by op, and so the tokens/s that a card can reach at most.

    python benchmarks/roofline.py [--seq-length 8192] [--micro-batch-size 1] [--microbatches 16] [--results DIR ...]

Each op takes its FLOPs at the card's rate or its bytes at the memory's, whichever is longer; ops do not overlap, and
communication, launches and the host cost nothing. Where gpu_kernels and gpu_step have left results, they stand beside
it. The last line is one JSON object. Rates: data sheets (dense), and what was measured on an H200 (a bf16 product of
790 TFLOP/s, a copy of 4.3 TB/s; FP8 is taken as twice bf16).

Legend: N tokens of a micro-batch, S tokens of a sample, H hidden, F feed-forward width, V vocabulary, Q and K channels
of all query heads and of all key heads.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from gpu.runner import read_records

from megatron_synE.config.model import PRESETS, LlamaArchitecture
from megatron_synE.kernels.linear_cross_entropy import GPU_CHUNK_SHARE
from megatron_synE.training.throughput import KNOWN_PEAK_TFLOPS

ROOT = Path(__file__).resolve().parent.parent
BF16_BYTES, FP32_BYTES = 2, 4
HEAD_CHUNK_BYTES = GPU_CHUNK_SHARE * 80 * 2**30
"""Logits of the head at a time, on a card of 80 GiB."""
OPTIMIZER_BYTES = {"fp32 moments": 30, "bf16 moments": 20, "all bf16": 14}
"""Read and written a weight: main value or remainder, gradient, moments, and the weight that the model uses."""


@dataclass(frozen=True)
class Machine:
    """A card's rates: FLOP/s of bf16 and FP8 products, bytes/s of its memory."""

    name: str
    bf16_flops: float
    fp8_flops: float
    bytes_per_second: float


H100 = Machine("H100 SXM, data sheet", KNOWN_PEAK_TFLOPS["H100"] * 1e12, 1979e12, 3.35e12)
H200 = Machine("H200, data sheet", KNOWN_PEAK_TFLOPS["H200"] * 1e12, 1979e12, 4.8e12)
H200_MEASURED = Machine("H200, measured rates", 790e12, 2 * 790e12, 4.3e12)
MACHINES = (H100, H200, H200_MEASURED)


@dataclass(frozen=True)
class Setting:
    """What is trained, and how."""

    architecture: LlamaArchitecture
    seq_length: int = 8192
    micro_batch_size: int = 1
    num_microbatches: int = 16
    precision: str = "bf16"
    recompute: str = "none"
    """Or `activation`, the MLP's, or `full`, whole layers."""
    optimizer: str = "fp32 moments"
    optimizer_shards: int = 1
    """Processes that share the optimizer's state (ZeRO-1)."""

    @property
    def tokens(self) -> int:
        """Of a micro-batch."""
        return self.seq_length * self.micro_batch_size


@dataclass(frozen=True)
class Op:
    """One kernel, `count` times in a step."""

    name: str
    count: int
    bytes: float
    """Read and written once."""
    flops: float = 0.0
    model_flops: float = 0.0
    """What train_flops_per_token counts of them: nothing that is computed a second time."""
    fp8: bool = False

    def seconds(self, machine: Machine) -> float:
        """Of all its calls in a step."""
        rate = machine.fp8_flops if self.fp8 else machine.bf16_flops
        return self.count * max(self.flops / rate, self.bytes / machine.bytes_per_second)


def products(name: str, setting: Setting, rows_in: int, rows_out: int, count: int) -> Iterator[Op]:
    """A linear layer: output, gradient of the input, gradient of the weight added to its fp32 main gradient."""
    tokens, fp8 = setting.tokens, setting.precision == "fp8"
    flops, weight = 2.0 * tokens * rows_in * rows_out, rows_in * rows_out
    element = 1 if fp8 else BF16_BYTES
    inputs, outputs = tokens * rows_in, tokens * rows_out
    yield Op(f"{name} forward", count, element * (inputs + weight) + BF16_BYTES * outputs, flops, flops, fp8)
    yield Op(f"{name} input gradient", count, element * (outputs + weight) + BF16_BYTES * inputs, flops, flops, fp8)
    main_gradient = 2 * FP32_BYTES * weight
    yield Op(f"{name} weight gradient", count, element * (inputs + outputs) + main_gradient, flops, flops, fp8)
    if fp8:
        # Read in bf16 for the largest magnitude, and again to be written as it is and transposed, the weight in a pass
        # each.
        yield Op(f"{name} quantising of input", count, (2 * BF16_BYTES + 2) * inputs)
        yield Op(f"{name} quantising of gradient", count, (2 * BF16_BYTES + 2) * outputs)
        yield Op(f"{name} quantising of weight", count, (2 * BF16_BYTES + 1) * weight)
        yield Op(f"{name} quantising of weight, backward", count, (BF16_BYTES + 1) * weight)


def layer_ops(setting: Setting) -> list[Op]:
    """Every layer, forward and backward, without recomputation."""
    model, tokens = setting.architecture, setting.tokens
    count = model.num_layers * setting.num_microbatches
    query, key = model.num_attention_heads * model.head_dim, model.num_query_groups * model.head_dim
    row, gate = BF16_BYTES * tokens * model.hidden_size, BF16_BYTES * tokens * model.ffn_hidden_size
    packed = BF16_BYTES * tokens * (query + 2 * key)
    context = BF16_BYTES * tokens * query
    # Two products forward, four backward, half of each for the mask; the kernel computes one of the first two again.
    product = 2.0 * tokens * setting.seq_length * query / 2
    return [
        Op("rms_norm", count, 2 * row),
        *products("qkv", setting, model.hidden_size, query + 2 * key, count),
        Op("rope_unpack", count, 2 * packed),
        Op("attention forward", count, packed + context, 2 * product, 2 * product),
        *products("attention output", setting, query, model.hidden_size, count),
        Op("add_rms_norm", count, 4 * row),
        *products("gate and up", setting, model.hidden_size, 2 * model.ffn_hidden_size, count),
        Op("swiglu", count, 3 * gate),
        *products("down", setting, model.ffn_hidden_size, model.hidden_size, count),
        Op("residual add", count, 3 * row),
        Op("swiglu_backward", count, 5 * gate),
        Op("add_rms_norm_backward", count, 4 * row),
        Op("attention backward", count, 2 * packed + 2 * context, 5 * product, 4 * product),
        Op("rope_unpack_backward", count, 2 * packed),
        Op("rms_norm_backward", count, 3 * row),
        Op("residual gradient add", count, 3 * row),
    ]


def is_recomputed(op: Op, setting: Setting) -> bool:
    """Whether the backward pass computes this op of a layer again."""
    if setting.recompute == "full":
        return not any(word in op.name for word in ("gradient", "backward"))
    return setting.recompute == "activation" and op.name == "swiglu"


def step_ops(setting: Setting) -> list[Op]:
    """Everything in a step, in the order in which it is first done."""
    model, tokens, count = setting.architecture, setting.tokens, setting.num_microbatches
    layers = layer_ops(setting)
    again = [replace(op, name=f"{op.name}, again", model_flops=0.0) for op in layers if is_recomputed(op, setting)]
    row, logits = BF16_BYTES * tokens * model.hidden_size, BF16_BYTES * tokens * model.vocab_size
    head = 2.0 * tokens * model.hidden_size * model.vocab_size
    matrix = model.hidden_size * model.vocab_size
    chunks = math.ceil(logits / HEAD_CHUNK_BYTES)
    weights = model.num_parameters() / setting.optimizer_shards
    return [
        Op("embedding", count, 2 * row),
        *layers,
        *again,
        Op("last norm", count, 2 * row),
        Op("logits", count, row + logits + chunks * BF16_BYTES * matrix, head, head),
        Op("cross_entropy_with_gradient", count, 2 * logits),
        Op("head input gradient", count, row + logits + chunks * BF16_BYTES * matrix, head, head),
        Op("head weight gradient", count, row + logits + chunks * 2 * FP32_BYTES * matrix, head, head),
        Op("last norm backward", count, 3 * row),
        Op("embedding gradient", count, row + 2 * FP32_BYTES * tokens * model.hidden_size),
        Op("clearing gradients", 1, FP32_BYTES * model.num_parameters()),
        Op("gradient norm", 1, FP32_BYTES * weights),
        Op("optimizer", 1, OPTIMIZER_BYTES[setting.optimizer] * weights),
    ]


def step_seconds(setting: Setting, machine: Machine) -> float:
    """Least time of a step."""
    return sum(op.seconds(machine) for op in step_ops(setting))


def tokens_per_s(setting: Setting, machine: Machine) -> float:
    """Most tokens/s of one card."""
    return setting.tokens * setting.num_microbatches / step_seconds(setting, machine)


@dataclass(frozen=True)
class Published:
    """A figure of others: what they ran, on what, tokens/s of each card, and where it stands."""

    setting: Setting
    machine: Machine
    tokens_per_s: float
    source: str


_8B = PRESETS["llama3_8b"]
_FSDP = Setting(_8B, optimizer_shards=8)
# torchtitan computes half of its layers' products again (selective); the bound is that without recomputation.
_KEMPNER = "KempnerForge@5666d0d mfu_scaling.md row 1, one H200, weights, gradients and moments in bf16"
PUBLISHED = (
    Published(replace(_FSDP, precision="fp8"), H100, 14451,
              "Megatron-Bridge@067f987df docs/performance-summary-archive.md:589, 8 H100, FP8 current scaling"),
    Published(replace(_FSDP, micro_batch_size=2, num_microbatches=1), H100, 6667,
              "torchtitan@b5bcd76c6 llama3_h100_202412_torchtitan.md Table 1, 8 H100 (96 GB HBM2e, 500 W), compiled"),
    Published(replace(_FSDP, micro_batch_size=2, num_microbatches=1, precision="fp8"), H100, 8532,
              "torchtitan, the same table, float8 linear"),
    Published(replace(_FSDP, micro_batch_size=2, num_microbatches=1, precision="fp8", optimizer_shards=32), H200, 10938,
              "torchtitan@b5bcd76c6 llama3-8b_h200_202506_trainy-whitefiber.md, 32 H200, float8 linear"),
    Published(Setting(_8B, 4096, 4, 2, recompute="full", optimizer="all bf16"), H200, 10471, _KEMPNER),
    Published(Setting(_8B, 4096, 4, 2, recompute="full", optimizer="all bf16"), H200_MEASURED, 10471, _KEMPNER),
)  # fmt: skip


def measured_kernels(results: Path) -> dict[str, float]:
    """Seconds of one call of gpu_kernels' ops that stand in the table, at the table's width."""
    figures = read_records(results).get("kernels", {}).get("figures", {})
    return {
        name.removesuffix(f" {_8B.hidden_size}"): found["ms"] / 1e3
        for name, found in figures.items()
        if isinstance(found, Mapping) and found.get("hidden") == _8B.hidden_size
    }


def measured_steps(results: Path) -> Iterator[tuple[str, Setting, float]]:
    """Name, setting and tokens/s of our cases in gpu_step's results."""
    records = read_records(results)
    for stage in ("step", "whole_8b", "te"):
        for name, found in records.get(stage, {}).get("figures", {}).items():
            if not isinstance(found, Mapping) or "tokens_per_s" not in found or found["documents"] > 1:
                continue
            setting = Setting(
                replace(_8B, num_layers=found["num_layers"]), found["seq_length"], found["micro_batch_size"],
                found["num_microbatches"], found["precision"], found["recompute"],
                "bf16 moments" if found["lean_optimizer"] else "fp32 moments",
            )  # fmt: skip
            yield name, setting, found["tokens_per_s"]


def machine_of(results: Path) -> Machine:
    """The data sheet's rates of the card that the results are from."""
    return H200 if "h200" in results.name.lower() else H100


def print_ops(setting: Setting, results: list[Path]) -> None:
    """The step, op by op; measured columns are milliseconds of all calls at the time that one took."""
    kernels = {folder.name: measured_kernels(folder) for folder in results}
    names = "".join(f"{machine.name.split(',')[0][:5] + ' ms':>10s}" for machine in MACHINES)
    print(f"{'op':32s} {'calls':>6s} {'GFLOP':>9s} {'MB':>8s} {'FLOP/B':>7s}{names}  bound on {H200_MEASURED.name}",
          *kernels)  # fmt: skip
    for op in step_ops(setting):
        times = "".join(f"{op.seconds(machine) * 1e3:10.2f}" for machine in MACHINES)
        rate = H200_MEASURED.fp8_flops if op.fp8 else H200_MEASURED.bf16_flops
        bound = "products" if op.flops / rate > op.bytes / H200_MEASURED.bytes_per_second else "memory"
        measured = [f"{found[op.name] * op.count * 1e3:.2f}" if op.name in found else "-" for found in kernels.values()]
        print(f"{op.name:32s} {op.count:6d} {op.flops / 1e9:9.1f} {op.bytes / 1e6:8.1f} {op.flops / op.bytes:7.0f}"
              f"{times}  {bound}", *measured)  # fmt: skip


def print_settings(base: Setting) -> dict[str, dict[str, int]]:
    """tokens/s at most, and model FLOP/s by the rate of bf16 products, of precisions and recomputation everywhere."""
    print(f"\n{'at most, tokens/s (MFU)':28s}" + "".join(f"{machine.name:>24s}" for machine in MACHINES))
    bounds: dict[str, dict[str, int]] = {}
    for precision in ("bf16", "fp8"):
        for recompute in ("none", "activation", "full"):
            setting = replace(base, precision=precision, recompute=recompute)
            name = f"{precision}, recompute {recompute}"
            bounds[name] = {machine.name: round(tokens_per_s(setting, machine)) for machine in MACHINES}
            per_token = setting.architecture.train_flops_per_token(setting.seq_length)
            cells = (
                f"{rate:12,d} ({rate * per_token / machine.bf16_flops:5.1%})   "
                for rate, machine in zip(bounds[name].values(), MACHINES, strict=True)
            )
            print(f"{name:28s}" + "".join(f"{cell:>24s}" for cell in cells))
    return bounds


def compare(rows: list[tuple[str, Setting, Machine, float]]) -> list[dict[str, Any]]:
    """Print measured tokens/s beside what is possible at the same setting."""
    found = []
    for source, setting, machine, measured in rows:
        bound = tokens_per_s(setting, machine)
        what = (
            f"{setting.architecture.num_layers} layers, {setting.precision}, recompute {setting.recompute}, "
            f"{setting.num_microbatches}x{setting.micro_batch_size}x{setting.seq_length}"
        )
        print(f"{measured:8,.0f} of {bound:8,.0f} ({measured / bound:5.1%})  {machine.name:22s} {what:48s} {source}")
        found.append({"source": source, "setting": what, "tokens_per_s": measured, "share": round(measured / bound, 3)})
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", choices=PRESETS, default="llama3_8b")
    parser.add_argument("--seq-length", type=int, default=8192)
    parser.add_argument("--micro-batch-size", type=int, default=1)
    parser.add_argument("--microbatches", type=int, default=16, help="micro-batches that share one optimizer step")
    parser.add_argument("--results", type=Path, nargs="*", help="by default every benchmarks/results/gpu-*")
    args = parser.parse_args()
    results = args.results
    if results is None:
        results = sorted(path for path in (ROOT / "benchmarks" / "results").glob("gpu-*") if path.is_dir())
    base = Setting(PRESETS[args.preset], args.seq_length, args.micro_batch_size, args.microbatches)
    print(f"{args.preset}, bf16, no recomputation, a step of {args.microbatches} micro-batches of "
          f"{args.micro_batch_size} x {args.seq_length} tokens")  # fmt: skip
    print_ops(base, results)
    bounds = print_settings(base)
    print("\npublished, tokens/s a card, of what is possible at its setting (communication not counted)")
    published = compare([(row.source, row.setting, row.machine, row.tokens_per_s) for row in PUBLISHED])
    ours = [(f"{folder.name}: {name}", setting, machine_of(folder), rate) for folder in results
            for name, setting, rate in measured_steps(folder)]  # fmt: skip
    print("\nmeasured by gpu_step" if ours else "\nmeasured by gpu_step: nothing yet")
    measured = compare(ours)
    print(json.dumps({"most_tokens_per_s": bounds, "published": published, "measured": measured}))


if __name__ == "__main__":
    main()
