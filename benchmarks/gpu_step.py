"""Llama-3 8B on one GPU, some layers or all: tokens/s and share of the measured product rate, beside transformers.

    python benchmarks/gpu_step.py [--suite layers] [--layers 4] [--device cuda] [--tiny]

Suites: `layers`, a few layers of 8B between its embedding and its head (ours, transformers eager and compiled; bf16 and
FP8; with and without recomputation; isolated documents); `whole`, all of 8B, for cards with more than 100 GiB; `te`,
the same layers on Transformer Engine. Every case starts from the same weights (`whole` from random ones), sees the same
batches, and has a process of its own, so that a failing one does not end the others; one JSON object a case, as it is
found. FLOPs are the model's (causal attention half, nothing recomputed). `--tiny --device cpu` rehearses all of it.
The last line is one JSON object. Exit status 77 where this machine cannot run the suite, 1 where a case failed.
"""

from __future__ import annotations

import argparse
import dataclasses
import importlib
import json
import logging
import math
import multiprocessing
import os
import sys
import tempfile
import traceback
import warnings
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch
from contenders import Contender, Work, make_step, save_weights
from gpu.runner import SKIPPED
from gpu.timing import median_seconds, product_rate

from megatron_synE.config.model import PRESETS, LlamaArchitecture
from megatron_synE.kernels.fp8 import scaled_product_problem

WHOLE_8B_BYTES = 100 * 2**30
CASE_SECONDS = 120
RUNS = 5
TINY = LlamaArchitecture(32, 64, 160, 4, 2, 512)
IMPORTS = ("transformers", "megatron_synE.training.loop")


def layers_suite(base: Work) -> list[tuple[Contender, Work]]:
    """The most telling cases first: the time may end before the list."""
    full, fp8 = dataclasses.replace(base, recompute="full"), dataclasses.replace(base, precision="fp8")
    short = dataclasses.replace(base, seq_length=base.seq_length // 2, micro_batch_size=2)
    return [
        ("fused", base),
        ("fused", full),
        ("hf_eager", base),
        ("fused", fp8),
        ("fused", dataclasses.replace(base, documents=16)),
        ("fused", dataclasses.replace(base, documents=64)),
        ("hf_compile", base),
        ("fused", dataclasses.replace(fp8, recompute="full")),
        ("fused", short),
        ("fused", dataclasses.replace(short, recompute="full")),
        ("fused", dataclasses.replace(base, recompute="activation")),
        ("local", base),
    ]


def whole_suite(base: Work) -> list[tuple[Contender, Work]]:
    """All of 8B with 10 bytes of optimizer and gradients a weight; the first case is the published setting."""
    lean = dataclasses.replace(base, lean_optimizer=True)
    published = dataclasses.replace(
        lean, seq_length=base.seq_length // 2, micro_batch_size=4, num_microbatches=2, recompute="full"
    )
    return [
        ("fused", published),
        ("fused", dataclasses.replace(published, precision="fp8")),
        ("fused", dataclasses.replace(lean, recompute="full")),
        ("fused", dataclasses.replace(lean, recompute="activation")),
        ("fused", lean),
    ]


def te_suite(base: Work) -> list[tuple[Contender, Work]]:
    """Transformer Engine's layers, and ours to compare with."""
    fp8 = dataclasses.replace(base, precision="fp8")
    return [
        ("transformer_engine", base),
        ("transformer_engine", fp8),
        ("fused", base),
        ("transformer_engine", dataclasses.replace(base, recompute="full")),
        ("transformer_engine", dataclasses.replace(fp8, recompute="full")),
    ]


SUITES = {"layers": layers_suite, "whole": whole_suite, "te": te_suite}


def case_name(contender: Contender, work: Work) -> str:
    documents = f", {work.documents} documents" if work.documents > 1 else ""
    return (
        f"{contender} {work.precision}, recompute {work.recompute}, "
        f"{work.num_microbatches}x{work.micro_batch_size}x{work.seq_length}{documents}"
    )


def measure(contender: Contender, work: Work, device_type: str, hf_dir: Path | None) -> dict[str, Any]:
    """Figures of a case."""
    device = torch.device(device_type, 0) if device_type == "cuda" else torch.device(device_type)
    torch.manual_seed(0)
    step = make_step(contender, work, device, hf_dir)
    first_loss = step()
    if not math.isfinite(first_loss):
        raise FloatingPointError(f"the first step's loss is {first_loss}")
    found: dict[str, Any] = {"step_seconds": median_seconds(step, device, RUNS, warmup=1), "first_loss": first_loss}
    if device.type == "cuda":
        found["peak_gib"] = round(torch.cuda.max_memory_allocated() / 2**30, 2)
    return found


def serve(connection: Connection) -> None:
    """A worker: imports, waits for its case, sends the figures or what went wrong."""
    warnings.filterwarnings("ignore")  # of optional packages that are absent
    logging.getLogger("megatron.core").setLevel(logging.ERROR)
    os.environ.update(RANK="0", WORLD_SIZE="1", LOCAL_RANK="0")
    for module in IMPORTS:
        importlib.import_module(module)
    try:
        case = connection.recv()
    except EOFError:
        return  # no case was left
    try:
        connection.send(measure(*case))
    except Exception as error:  # a case that fails is told, and the next one goes on
        traceback.print_exc()
        connection.send({"error": f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"})


class Worker:
    """A process for one case. It is started while another one measures: imports take many seconds.

    It is no fork of a process that has imported: megatron-core asks for GPUs at its import, and a fork of a process
    that has asked can use none.
    """

    def __init__(self) -> None:
        context = multiprocessing.get_context("spawn")
        self.connection, theirs = context.Pipe()
        self.process = context.Process(target=serve, args=(theirs,), daemon=True)
        self.process.start()
        theirs.close()

    def run(self, *case: Any) -> dict[str, Any]:
        """`measure` of this case, or `{"error": …}`."""
        try:
            self.connection.send(case)
            found = {"error": f"nothing after {CASE_SECONDS} s"}
            if self.connection.poll(CASE_SECONDS):
                found = self.connection.recv()
        except (EOFError, ConnectionError):
            found = {"error": "the process died"}
        self.close()
        return found

    def close(self) -> None:
        """End the process: it has told all it knows, and on a GPU the interpreter's end takes seconds."""
        self.connection.close()
        self.process.kill()
        self.process.join()


def run_suite(
    cases: list[tuple[Contender, Work]], device_type: str, rate: float, hf_dir: Path | None
) -> dict[str, Any]:
    """Name → the case, its figures, tokens/s and share of `rate` (FLOP/s)."""
    figures, spare = {}, Worker()
    for contender, work in cases:
        worker, spare = spare, Worker()
        fields = dataclasses.asdict(work)
        architecture = fields.pop("architecture")
        case = {"contender": contender, **fields, "num_layers": architecture["num_layers"]}
        found = worker.run(contender, work, device_type, hf_dir)
        if "step_seconds" in found:
            case["tokens_per_s"] = round(work.tokens_per_step / found["step_seconds"], 1)
            case["share_of_gemm_rate"] = round(work.flops_per_step / found["step_seconds"] / rate, 4)
        name = case_name(contender, work)
        figures[name] = {**case, **found}
        print(json.dumps({name: figures[name]}), flush=True)
    spare.close()
    return figures


def cannot_run(suite: str, device_type: str, tiny: bool) -> str | None:
    """Why this machine cannot run the suite."""
    if device_type == "cuda" and not torch.cuda.is_available():
        return "no GPU on this machine"
    if suite == "te" and not _imports("transformer_engine.pytorch"):
        return "Transformer Engine cannot be imported here"
    if suite == "whole" and not tiny and torch.cuda.get_device_properties(0).total_memory < WHOLE_8B_BYTES:
        return f"the whole 8B needs a card with more than {WHOLE_8B_BYTES / 2**30:.0f} GiB"
    return None


def _imports(module: str) -> bool:
    """Whether it can be imported; by another process, since a broken one may do anything."""
    import subprocess

    return subprocess.run([sys.executable, "-c", f"import {module}"], capture_output=True, check=False).returncode == 0


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--suite", choices=SUITES, default="layers")
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--seq-length", type=int, default=8192)
    parser.add_argument("--microbatches", type=int, default=4, help="micro-batches that share one optimizer step")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--tiny", action="store_true", help="sizes of no meaning, to rehearse on a CPU")
    args = parser.parse_args()
    reason = cannot_run(args.suite, args.device, args.tiny)
    if reason is not None:
        print(reason)
        return SKIPPED
    architecture = TINY if args.tiny else PRESETS["llama3_8b"]
    num_layers = architecture.num_layers if args.suite == "whole" and not args.tiny else args.layers
    architecture = dataclasses.replace(architecture, num_layers=num_layers)
    device = torch.device(args.device)
    machine = torch.cuda.get_device_name() if device.type == "cuda" else "cpu"
    dtypes = {"gemm_tflops": torch.bfloat16, "fp8_gemm_tflops": torch.float8_e4m3fn}
    if scaled_product_problem(device) is not None:
        del dtypes["fp8_gemm_tflops"]
    rates = {name: product_rate(device, dtype, 256 if args.tiny else 8192, runs=10) for name, dtype in dtypes.items()}
    figures: dict[str, Any] = {"machine": machine, **{name: round(rate / 1e12, 4) for name, rate in rates.items()}}
    print(json.dumps(figures), flush=True)
    seq_length = 256 if args.tiny else args.seq_length
    base = Work(architecture, seq_length, num_microbatches=args.microbatches, recompute="none")
    with tempfile.TemporaryDirectory() as folder:
        hf_dir = None if args.suite == "whole" else Path(folder)
        if hf_dir is not None:
            save_weights(architecture, hf_dir, device, torch.bfloat16)
        if device.type == "cuda":
            torch.cuda.empty_cache()
        figures |= run_suite(SUITES[args.suite](base), device.type, rates["gemm_tflops"], hf_dir)
    print(json.dumps(figures))
    return int(any("error" in case for case in figures.values() if isinstance(case, dict)))


if __name__ == "__main__":
    sys.exit(main())
