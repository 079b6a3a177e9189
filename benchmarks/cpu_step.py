"""One training step on a CPU: ours (megatron-core with fused layers) against transformers' Llama, side by side.

    python benchmarks/cpu_step.py [--rounds 5] [--threads 2] [--skip-ops] [--skip-memory]

Every contender lives in a process of its own and takes one step in turn, so that all see the same machine; medians are
compared. All train the same shape with AdamW, gradient clipping and the same number of threads. In bf16 transformers
keeps parameters, gradients and moments in bf16. `ours` keeps the moments in bf16 too, and fp32 main values and fp32
gradients nevertheless (the precision-aware optimizer); `ours_fp32_moments` is the default optimizer, all of it in fp32.
The last line is one JSON object with the figures of DESIGN §7.
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
import time
import warnings
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any

SHAPE = {
    "hidden_size": 512, "num_hidden_layers": 8, "num_attention_heads": 8, "num_key_value_heads": 4,
    "intermediate_size": 1536,
}  # fmt: skip
VOCAB, LARGE_VOCAB = 32000, 128256
SEQ_LENGTH, BATCH = 512, 4
GEMM_SIZE = 2048
LEARNING_RATE = 1e-5


def flops_per_step(vocab: int) -> float:
    """Model FLOPs of forward and backward, causal attention counted half, no recomputation."""
    hidden, layers = SHAPE["hidden_size"], SHAPE["num_hidden_layers"]
    kv = SHAPE["num_key_value_heads"] / SHAPE["num_attention_heads"]
    weights = layers * (hidden * hidden * (2 + 2 * kv) + 3 * hidden * SHAPE["intermediate_size"]) + hidden * vocab
    return BATCH * SEQ_LENGTH * (6 * weights + 6 * layers * hidden * SEQ_LENGTH)


def make_hf_step(dtype_name: str, vocab: int, compiled: bool) -> Callable[[], float]:
    """A step of transformers' Llama with torch's fused AdamW, as one would write it; returns the loss."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        **SHAPE, vocab_size=vocab, max_position_embeddings=SEQ_LENGTH, attn_implementation="sdpa",
        tie_word_embeddings=False,
    )  # fmt: skip
    model: Any = LlamaForCausalLM(config).to(torch.bfloat16 if dtype_name == "bf16" else torch.float32)
    forward = torch.compile(model) if compiled else model
    optimizer = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE, fused=True)
    tokens = torch.randint(0, vocab, (BATCH, SEQ_LENGTH))

    def step() -> float:
        loss = forward(input_ids=tokens, labels=tokens).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        return float(loss.detach())

    return step


def make_our_step(dtype_name: str, vocab: int, threads: int, fp32_moments: bool = False) -> Callable[[], float]:
    """A step of `megatron_synE.training`, with everything a training run does in it."""
    import torch

    from megatron_synE.config.model import LlamaArchitecture, ModelConfig
    from megatron_synE.config.optimizer import OptimizerConfig
    from megatron_synE.config.parallel import ParallelConfig
    from megatron_synE.config.precision import PrecisionConfig
    from megatron_synE.runtime import initialize

    precision_aware = dtype_name == "bf16" and not fp32_moments
    moments = "bf16" if precision_aware else "fp32"
    optimizer_config = OptimizerConfig(
        lr=LEARNING_RATE,
        use_precision_aware_optimizer=precision_aware,
        exp_avg_dtype=moments,
        exp_avg_sq_dtype=moments,
    )
    parallel = ParallelConfig(
        device="cpu", use_distributed_optimizer=precision_aware, overlap_grad_reduce=False, overlap_param_gather=False
    )
    runtime = initialize(parallel)
    torch.set_num_threads(threads)

    from megatron_synE.model import build_model_chunks
    from megatron_synE.training.microbatches import MicroBatch
    from megatron_synE.training.optimizer import build_optimizer, wrap_data_parallel
    from megatron_synE.training.step import freeze_startup_objects, train_step

    architecture = LlamaArchitecture(
        num_layers=SHAPE["num_hidden_layers"],
        hidden_size=SHAPE["hidden_size"],
        ffn_hidden_size=SHAPE["intermediate_size"],
        num_attention_heads=SHAPE["num_attention_heads"],
        num_query_groups=SHAPE["num_key_value_heads"],
        vocab_size=vocab,
        max_position_embeddings=SEQ_LENGTH,
    )
    precision = PrecisionConfig(dtype="bf16" if dtype_name == "bf16" else "fp32")
    model = ModelConfig(transformer_impl="fused")
    chunks = build_model_chunks(architecture, model, parallel, precision, device=runtime.device)
    wrapped = wrap_data_parallel(list(chunks), parallel, precision)
    optimizer = build_optimizer(wrapped, optimizer_config, parallel, precision)
    tokens = torch.randint(0, vocab, (BATCH, SEQ_LENGTH))
    batch = MicroBatch(
        tokens_BS=tokens,
        labels_BS=tokens.roll(-1, dims=1),
        loss_mask_BS=torch.ones(BATCH, SEQ_LENGTH),
        position_ids_BS=torch.arange(SEQ_LENGTH).expand(BATCH, SEQ_LENGTH),
        component_BS=torch.zeros(BATCH, SEQ_LENGTH, dtype=torch.int32),
        packed_seq_params=None,
    )

    freeze_startup_objects()

    def step() -> float:
        return train_step(wrapped, optimizer, [batch], learning_rate=LEARNING_RATE, num_components=1).loss

    return step


def make_gemm(dtype_name: str) -> Callable[[], float]:
    """A square product on random data: the yardstick."""
    import torch

    dtype = torch.bfloat16 if dtype_name == "bf16" else torch.float32
    a, b = (torch.randn(GEMM_SIZE, GEMM_SIZE).to(dtype) for _ in range(2))

    def step() -> float:
        torch.mm(a, b)
        return 0.0

    return step


def serve(connection: Connection, kind: str, dtype_name: str, vocab: int, threads: int) -> None:
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
    if kind.startswith("ours"):
        step = make_our_step(dtype_name, vocab, threads, fp32_moments=kind == "ours_fp32_moments")
    elif kind == "gemm":
        step = make_gemm(dtype_name)
    else:
        step = make_hf_step(dtype_name, vocab, compiled=kind == "hf_compile")
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

    def __init__(self, kind: str, dtype_name: str, vocab: int, threads: int) -> None:
        self.name = f"{kind} {dtype_name}"
        self.results: list[dict[str, float]] = []
        context = multiprocessing.get_context("spawn")
        self.connection, theirs = context.Pipe()
        self.process = context.Process(target=serve, args=(theirs, kind, dtype_name, vocab, threads), daemon=True)
        self.process.start()
        theirs.close()
        assert self.connection.recv() == "ready"

    def step(self, keep: bool = True) -> None:
        self.connection.send("step")
        result = self.connection.recv()
        if keep:
            self.results.append(result)

    @property
    def seconds(self) -> float:
        return statistics.median(result["seconds"] for result in self.results)

    def close(self) -> None:
        self.connection.send("stop")
        self.process.join()


def compare_steps(dtype_name: str, kinds: list[str], rounds: int, threads: int) -> dict[str, Contender]:
    """Median step of each contender, one step each in every round."""
    contenders = {kind: Contender(kind, dtype_name, VOCAB, threads) for kind in kinds}
    for contender in contenders.values():
        for _ in range(2):
            contender.step(keep=False)
    for _ in range(rounds):
        for contender in contenders.values():
            contender.step()
    gemm_rate = 2 * GEMM_SIZE**3 / contenders["gemm"].seconds
    print(f"\n{dtype_name}: {GEMM_SIZE}^3 product {gemm_rate / 1e12:.2f} TFLOP/s")
    for kind, contender in contenders.items():
        if kind != "gemm":
            share = flops_per_step(VOCAB) / contender.seconds / gemm_rate
            spread = [result["seconds"] for result in contender.results]
            print(
                f"  {kind:17s} {contender.seconds:6.3f} s ({min(spread):.3f} .. {max(spread):.3f})  "
                f"{BATCH * SEQ_LENGTH / contender.seconds:6.0f} tokens/s  {share:6.1%} of the product's rate  "
                f"loss {contender.results[-1]['loss']:.3f}"
            )
        contender.close()
    return contenders


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
            peaks[dtype_name][kind] = contender.results[-1]["peak_bytes"]
            contender.close()
            print(f"  {dtype_name} {kind:17s} {peaks[dtype_name][kind] / 2**20:8.0f} MiB")
    return peaks


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--skip-ops", action="store_true", help="leave out the table of single ops")
    parser.add_argument("--skip-memory", action="store_true")
    args = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = str(args.threads)
    print(f"{processor()}, {args.threads} threads, load average {os.getloadavg()[0]:.1f}")
    print(f"shape {SHAPE}, vocabulary {VOCAB}, sequence {SEQ_LENGTH}, batch {BATCH}")

    contenders = ["gemm", "hf_eager", "hf_compile", "ours", "ours_fp32_moments"]
    bf16 = compare_steps("bf16", contenders, args.rounds, args.threads)
    fp32 = compare_steps("fp32", ["gemm", "hf_eager", "ours"], args.rounds, args.threads)
    rate = 2 * GEMM_SIZE**3 / bf16["gemm"].seconds
    figures = {
        "speedup_vs_hf_eager_bf16": bf16["hf_eager"].seconds / bf16["ours"].seconds,
        "speedup_vs_hf_compile_bf16": bf16["hf_compile"].seconds / bf16["ours"].seconds,
        "speedup_vs_hf_eager_bf16_fp32_moments": bf16["hf_eager"].seconds / bf16["ours_fp32_moments"].seconds,
        "gemm_share_bf16": flops_per_step(VOCAB) / bf16["ours"].seconds / rate,
        "speedup_vs_hf_eager_fp32": fp32["hf_eager"].seconds / fp32["ours"].seconds,
    }
    if not args.skip_memory:
        peaks = compare_memory(args.threads)
        figures["peak_memory_ratio_128k_vocab"] = peaks["bf16"]["ours"] / peaks["bf16"]["hf_eager"]
        default = peaks["bf16"]["ours_fp32_moments"]
        figures["peak_memory_ratio_128k_vocab_bf16_fp32_moments"] = default / peaks["bf16"]["hf_eager"]
        figures["peak_memory_ratio_128k_vocab_fp32"] = peaks["fp32"]["ours"] / peaks["fp32"]["hf_eager"]
    if not args.skip_ops:
        from cpu_ops import print_table

        print_table(args.threads)
    figures["machine"] = f"{processor()}, {args.threads} threads"  # type: ignore[assignment]
    print(json.dumps({k: round(v, 3) if isinstance(v, float) else v for k, v in figures.items()}))


def processor() -> str:
    try:
        with open("/proc/cpuinfo") as info:
            return next(line.split(":", 1)[1].strip() for line in info if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


if __name__ == "__main__":
    main()
