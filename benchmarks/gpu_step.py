"""Layers of Llama-3 8B on one GPU: tokens/s and the share of the measured GEMM rate, per precision and recomputation.

    python benchmarks/gpu_step.py [--layers 4] [--seq-length 8192] [--impl fused transformer_engine]

Whole training steps of `megatron_synE.training` (forward, backward, AdamW). The last line is one JSON object. Without a
GPU it says so and exits with status 0 and an empty object.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import statistics
import time
from typing import Any

import torch

from megatron_synE.config.model import PRESETS, LlamaArchitecture, ModelConfig
from megatron_synE.config.optimizer import OptimizerConfig
from megatron_synE.config.parallel import ParallelConfig
from megatron_synE.config.precision import PrecisionConfig
from megatron_synE.runtime import initialize

GEMM_SIZE = 8192
RUNS = 5


def gemm_rate() -> float:
    """FLOP/s of a bf16 square product on random data."""
    a, b = (torch.randn(GEMM_SIZE, GEMM_SIZE, device="cuda", dtype=torch.bfloat16) for _ in range(2))
    return 2 * GEMM_SIZE**3 / median_seconds(lambda: torch.mm(a, b))


def median_seconds(call: Any) -> float:
    times = []
    for _ in range(RUNS + 2):
        torch.cuda.synchronize()
        start = time.perf_counter()
        call()
        torch.cuda.synchronize()
        times.append(time.perf_counter() - start)
    return statistics.median(times[2:])


def step_seconds(
    architecture: LlamaArchitecture, seq_length: int, model: ModelConfig, precision: PrecisionConfig
) -> float:
    """Median time of a training step of one sequence."""
    from megatron.core import parallel_state

    parallel = ParallelConfig(use_distributed_optimizer=False, overlap_grad_reduce=False)
    runtime = initialize(parallel)

    from megatron_synE.model import build_model_chunks
    from megatron_synE.training.microbatches import MicroBatch
    from megatron_synE.training.optimizer import build_optimizer, wrap_data_parallel
    from megatron_synE.training.step import train_step

    chunks = build_model_chunks(architecture, model, parallel, precision, device=runtime.device)
    wrapped = wrap_data_parallel(list(chunks), parallel, precision)
    optimizer = build_optimizer(wrapped, OptimizerConfig(), parallel, precision)
    tokens = torch.randint(0, architecture.vocab_size, (1, seq_length), device=runtime.device)
    batch = MicroBatch(
        tokens_BS=tokens,
        labels_BS=tokens.roll(-1, dims=1),
        loss_mask_BS=torch.ones(1, seq_length, device=runtime.device),
        position_ids_BS=torch.arange(seq_length, device=runtime.device).unsqueeze(0),
        component_BS=torch.zeros(1, seq_length, dtype=torch.int32, device=runtime.device),
        packed_seq_params=None,
    )
    seconds = median_seconds(lambda: train_step(wrapped, optimizer, [batch], learning_rate=1e-5, num_components=1))
    parallel_state.destroy_model_parallel()
    return seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--seq-length", type=int, default=8192)
    parser.add_argument("--impl", nargs="+", default=["fused"], choices=["local", "fused", "transformer_engine"])
    parser.add_argument("--fp8", action="store_true", help="also FP8, with transformer_engine")
    args = parser.parse_args()
    if not torch.cuda.is_available():
        print("no GPU on this machine: nothing measured")
        print(json.dumps({}))
        return
    architecture = dataclasses.replace(PRESETS["llama3_8b"], num_layers=args.layers)
    rate = gemm_rate()
    print(f"{torch.cuda.get_device_name()}: bf16 {GEMM_SIZE}^3 product {rate / 1e12:.0f} TFLOP/s")
    figures: dict[str, Any] = {"machine": torch.cuda.get_device_name(), "gemm_tflops": round(rate / 1e12, 1)}
    for impl in args.impl:
        for fp8 in ("none", "hybrid") if args.fp8 and impl == "transformer_engine" else ("none",):
            for recompute in ("none", "full"):
                model = ModelConfig(transformer_impl=impl, recompute=recompute)  # type: ignore[arg-type]
                precision = PrecisionConfig(fp8=fp8)  # type: ignore[arg-type]
                seconds = step_seconds(architecture, args.seq_length, model, precision)
                tokens_per_s = args.seq_length / seconds
                share = architecture.train_flops_per_token(args.seq_length) * tokens_per_s / rate
                name = f"{impl}, {'bf16' if fp8 == 'none' else 'fp8'}, recompute {recompute}"
                print(f"  {name:44s} {seconds:7.3f} s  {tokens_per_s:7.0f} tokens/s  {share:6.1%} of the GEMM rate")
                figures[name] = {"tokens_per_s": round(tokens_per_s), "share_of_gemm_rate": round(share, 3)}
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
