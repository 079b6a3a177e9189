"""One training step on a CPU: ours (megatron-core with fused layers) against transformers' Llama, side by side.

    python benchmarks/cpu_step.py [--minutes 5] [--threads 2] [--skip-ops] [--skip-memory]

Equal work: all start from the same weights in a Hugging Face folder, see the same batches, and follow the same rule of
update (AdamW, clipping); their losses are compared. `ours` in bf16 keeps the moments in bf16, as transformers does, and
fp32 main values and gradients nevertheless; `ours_fp32_moments` is the default optimizer, all of it in fp32.

Every contender lives in a process of its own, and all take one step in turn, so that they see the same machine. A ratio
is taken in each round; rounds are added until the quartiles of every ratio are within 5 % of its median, or the time is
up: then it says that the machine was too busy. The last line is one JSON object with the figures of DESIGN §7, and the
quartiles. Exit status 1 where the losses disagree.
"""

from __future__ import annotations

import argparse
import gc
import json
import logging
import multiprocessing
import os
import platform
import statistics
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from contenders import DISTINCT_STEPS, Work, make_step, save_weights_apart

from megatron_synE.config.model import LlamaArchitecture

WORK = Work(LlamaArchitecture(8, 512, 1536, 8, 4, 32000, max_position_embeddings=512), 512, micro_batch_size=4)
LARGE_VOCAB = 128256
GEMM_SIZE, GEMMS_PER_ROUND = 2048, 5
FEWEST_ROUNDS = 7
LARGEST_SPREAD = 0.05
"""Of the quartiles of a ratio, from its median."""
LARGEST_LOSS_DIFFERENCE = {"fp32": 1e-4, "bf16": 5e-3}
"""Relative, in the first steps. Later ones differ by what transformers' bf16 weights cannot take up at this rate."""


def work_of(kind: str, dtype_name: str, vocab: int) -> Work:
    """The step of a contender."""
    architecture = replace(WORK.architecture, vocab_size=vocab)
    lean = kind == "ours" and dtype_name == "bf16"
    return replace(WORK, architecture=architecture, precision=dtype_name, lean_optimizer=lean)  # type: ignore[arg-type]


def make_gemm(dtype_name: str) -> Callable[[], float]:
    """A square product on random data: the yardstick."""
    import torch

    dtype = torch.bfloat16 if dtype_name == "bf16" else torch.float32
    a, b = (torch.randn(GEMM_SIZE, GEMM_SIZE).to(dtype) for _ in range(2))

    def step() -> float:
        torch.mm(a, b)
        return 0.0

    return step


def serve(
    connection: Connection, kind: str, dtype_name: str, vocab: int, threads: int, hf_dir: Path | None
) -> None:
    """A contender's process: builds it, then takes one step for each request and sends back the seconds."""
    os.environ.update(RANK="0", WORLD_SIZE="1", LOCAL_RANK="0")
    warnings.filterwarnings("ignore")  # of optional packages that are absent
    logging.getLogger("megatron.core").setLevel(logging.ERROR)
    import torch

    torch.set_num_threads(threads)
    torch.manual_seed(0)
    if kind.startswith("ours"):
        import megatron_synE.training.loop  # noqa: F401 - the imports do not count as memory of the step
    else:
        import transformers  # noqa: F401
    gc.collect()
    before = resident_bytes("VmRSS")
    if kind == "gemm":
        step = make_gemm(dtype_name)
    else:
        contender: Any = "fused" if kind.startswith("ours") else kind
        step = make_step(contender, work_of(kind, dtype_name, vocab), torch.device("cpu"), hf_dir)
    torch.set_num_threads(threads)
    connection.send("ready")
    while connection.recv() == "step":
        start = time.perf_counter()
        loss = step()
        seconds = time.perf_counter() - start
        connection.send({"seconds": seconds, "loss": loss, "peak_bytes": resident_bytes("VmHWM") - before})


def resident_bytes(field: str) -> int:
    """VmRSS (now) or VmHWM (highest) of this process, in bytes; 0 where /proc does not tell."""
    try:
        with open("/proc/self/status") as status:
            return next(int(line.split()[1]) * 1024 for line in status if line.startswith(field + ":"))
    except (OSError, StopIteration):
        return 0


class Contender:
    """A process that takes steps on request."""

    def __init__(self, kind: str, dtype_name: str, vocab: int, threads: int, hf_dir: Path | None = None) -> None:
        self.seconds: list[float] = []
        self.losses: list[float] = []
        self.peak_bytes = 0
        context = multiprocessing.get_context("spawn")
        self.connection, theirs = context.Pipe()
        self.process = context.Process(
            target=serve, args=(theirs, kind, dtype_name, vocab, threads, hf_dir), daemon=True
        )
        self.process.start()
        theirs.close()
        assert self.connection.recv() == "ready"

    def step(self) -> float:
        """Take a step; returns its seconds."""
        self.connection.send("step")
        result = self.connection.recv()
        self.losses.append(result["loss"])
        self.peak_bytes = result["peak_bytes"]
        return result["seconds"]

    def close(self) -> None:
        self.connection.send("stop")
        self.process.join()


@dataclass(frozen=True)
class Ratio:
    """One ratio over all rounds."""

    quartiles: tuple[float, float, float]

    @classmethod
    def of(cls, over: Sequence[float], under: Sequence[float]) -> Ratio:
        """Of times that were taken in the same rounds."""
        values = [a / b for a, b in zip(over, under, strict=True)]
        first, median, third = statistics.quantiles(values, n=4, method="inclusive")
        return cls((first, median, third))

    @property
    def median(self) -> float:
        return self.quartiles[1]

    @property
    def settled(self) -> bool:
        """Whether both quartiles are near the median."""
        first, median, third = self.quartiles
        return max(median - first, third - median) <= LARGEST_SPREAD * median


def ratios(seconds: Mapping[str, Sequence[float]], dtype_name: str) -> dict[str, Ratio]:
    """What the contenders' times say, by the names of DESIGN §7: how often ours fits into theirs, and into products."""
    # The time that the step's FLOPs take at the product's rate of the same round, over the step's.
    at_rate = [second * WORK.flops_per_step / (2 * GEMM_SIZE**3) for second in seconds["gemm"]]
    found = {f"gemm_share_{dtype_name}": Ratio.of(at_rate, seconds["ours"])}
    for kind in ("hf_eager", "hf_compile"):
        if kind in seconds:
            found[f"speedup_vs_{kind}_{dtype_name}"] = Ratio.of(seconds[kind], seconds["ours"])
    if "ours_fp32_moments" in seconds:
        found["speedup_vs_hf_eager_bf16_fp32_moments"] = Ratio.of(seconds["hf_eager"], seconds["ours_fp32_moments"])
    return found


def take_rounds(contenders: Mapping[str, Contender], dtype_name: str, deadline: float) -> dict[str, Ratio]:
    """Steps in turn until every ratio has settled, or `deadline` (time.monotonic) has passed."""
    found: dict[str, Ratio] = {}
    while True:
        for kind, contender in contenders.items():
            repeats = GEMMS_PER_ROUND if kind == "gemm" else 1
            contender.seconds.append(statistics.median(contender.step() for _ in range(repeats)))
        rounds = len(contenders["gemm"].seconds)
        if rounds >= 2:
            found = ratios({kind: contender.seconds for kind, contender in contenders.items()}, dtype_name)
        settled = rounds >= FEWEST_ROUNDS and all(ratio.settled for ratio in found.values())
        if settled or (rounds >= 2 and time.monotonic() > deadline):
            return found


def compare_steps(
    dtype_name: str, kinds: list[str], deadline: float, threads: int, hf_dir: Path
) -> tuple[dict[str, Ratio], bool]:
    """The settled ratios of a type, and whether all losses agree."""
    vocab = WORK.architecture.vocab_size
    contenders = {kind: Contender(kind, dtype_name, vocab, threads, hf_dir) for kind in kinds}
    for contender in contenders.values():
        for _ in range(2):
            contender.step()
    found = take_rounds(contenders, dtype_name, deadline)
    rate = 2 * GEMM_SIZE**3 / statistics.median(contenders["gemm"].seconds)
    print(f"\n{dtype_name}: {GEMM_SIZE}^3 product {rate / 1e12:.2f} TFLOP/s, {len(contenders['gemm'].seconds)} rounds")
    for kind, contender in contenders.items():
        contender.close()
        if kind != "gemm":
            median = statistics.median(contender.seconds)
            print(
                f"  {kind:17s} {median:6.3f} s ({min(contender.seconds):.3f} .. {max(contender.seconds):.3f})  "
                f"{WORK.tokens_per_step / median:6.0f} tokens/s"
            )
    for name, ratio in found.items():
        first, median, third = ratio.quartiles
        verdict = "" if ratio.settled else "  NOT SETTLED: the machine was too busy"
        print(f"  {name:40s} {median:.3f}  quartiles {first:.3f} .. {third:.3f}{verdict}")
    losses = {kind: contender.losses for kind, contender in contenders.items() if kind != "gemm"}
    return found, losses_agree(losses, LARGEST_LOSS_DIFFERENCE[dtype_name])


def losses_agree(losses: Mapping[str, Sequence[float]], bound: float) -> bool:
    """Whether all contenders' first losses are those of `ours`; prints by how much they are not."""
    agree = True
    expected = losses["ours"][:DISTINCT_STEPS]
    print(f"  losses of ours in the first {DISTINCT_STEPS} steps: " + " ".join(f"{loss:.4f}" for loss in expected))
    for kind, values in losses.items():
        worst = max(abs(a / b - 1) for a, b in zip(values[:DISTINCT_STEPS], expected, strict=True))
        agree &= worst <= bound
        verdict = f"(bound {bound:g})" if worst <= bound else f"MORE THAN {bound:g}"
        print(f"  {kind:17s} differs by at most {worst:.1e} {verdict}")
    return agree


def compare_memory(threads: int) -> dict[str, dict[str, float]]:
    """Highest resident memory of model, optimizer and two steps at the large vocabulary, without the imports."""
    peaks: dict[str, dict[str, float]] = {}
    print(f"\npeak memory at a vocabulary of {LARGE_VOCAB:,}")
    for dtype_name in ("bf16", "fp32"):
        peaks[dtype_name] = {}
        for kind in ("hf_eager", "ours", *(["ours_fp32_moments"] if dtype_name == "bf16" else [])):
            contender = Contender(kind, dtype_name, LARGE_VOCAB, threads)
            for _ in range(2):
                contender.step()
            peaks[dtype_name][kind] = contender.peak_bytes
            contender.close()
            print(f"  {dtype_name} {kind:17s} {peaks[dtype_name][kind] / 2**20:8.0f} MiB")
    return peaks


def memory_figures(peaks: Mapping[str, Mapping[str, float]]) -> dict[str, float]:
    """Ours over transformers'."""
    bf16, fp32 = peaks["bf16"], peaks["fp32"]
    return {
        "peak_memory_ratio_128k_vocab": bf16["ours"] / bf16["hf_eager"],
        "peak_memory_ratio_128k_vocab_bf16_fp32_moments": bf16["ours_fp32_moments"] / bf16["hf_eager"],
        "peak_memory_ratio_128k_vocab_fp32": fp32["ours"] / fp32["hf_eager"],
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=5, help="for the steps; memory and ops take three more")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--skip-ops", action="store_true", help="leave out the table of single ops")
    parser.add_argument("--skip-memory", action="store_true")
    args = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = str(args.threads)
    start = time.monotonic()
    print(f"{processor()}, {args.threads} threads, load average {os.getloadavg()[0]:.1f}")
    print(f"{WORK.architecture}, batch {WORK.micro_batch_size}")
    with tempfile.TemporaryDirectory() as folder:
        save_weights_apart(WORK.architecture, Path(folder))
        bf16_kinds = ["gemm", "hf_eager", "hf_compile", "ours", "ours_fp32_moments"]
        bf16_deadline, deadline = start + 0.6 * 60 * args.minutes, start + 60 * args.minutes
        bf16, bf16_agrees = compare_steps("bf16", bf16_kinds, bf16_deadline, args.threads, Path(folder))
        fp32, fp32_agrees = compare_steps("fp32", ["gemm", "hf_eager", "ours"], deadline, args.threads, Path(folder))
    found = {**bf16, **fp32}
    figures: dict[str, Any] = {name: ratio.median for name, ratio in found.items()}
    if not args.skip_memory:
        figures |= memory_figures(compare_memory(args.threads))
    if not args.skip_ops:
        from cpu_ops import print_table

        print_table(args.threads)
    figures["machine"] = f"{processor()}, {args.threads} threads"
    figures["settled"] = all(ratio.settled for ratio in found.values())
    figures["losses_agree"] = bf16_agrees and fp32_agrees
    rounded = {name: round(value, 3) if isinstance(value, float) else value for name, value in figures.items()}
    rounded["quartiles"] = {name: [round(value, 3) for value in ratio.quartiles] for name, ratio in found.items()}
    print(json.dumps(rounded))
    return int(not figures["losses_agree"])


def processor() -> str:
    try:
        with open("/proc/cpuinfo") as info:
            return next(line.split(":", 1)[1].strip() for line in info if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


if __name__ == "__main__":
    sys.exit(main())
