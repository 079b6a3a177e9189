"""One training step of one shape, as several contenders take it: the same weights, batches and rule of update.

Ours is megatron_synE.training with everything a run does in a step; beside it transformers' Llama with torch's fused
AdamW, eager or compiled, as one would write it. In bf16 transformers keeps weights, gradients and moments in bf16;
ours keeps fp32 gradients and main values nevertheless. Legend: B samples of a micro-batch, S tokens of a sample.
"""

from __future__ import annotations

import itertools
import multiprocessing
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from megatron_synE.config.model import LlamaArchitecture, ModelConfig
from megatron_synE.config.optimizer import OptimizerConfig
from megatron_synE.config.parallel import ParallelConfig
from megatron_synE.config.precision import PrecisionConfig

LEARNING_RATE = 1e-5
DISTINCT_STEPS = 4
"""Batches are random tokens, and come round again after so many steps."""

Contender = Literal["fused", "local", "transformer_engine", "hf_eager", "hf_compile"]
Step = Callable[[], float]
"""Takes a step and returns the mean loss of its tokens before the update."""


@dataclass(frozen=True)
class Work:
    """What every contender does in a step."""

    architecture: LlamaArchitecture
    seq_length: int
    micro_batch_size: int = 1
    num_microbatches: int = 1
    precision: Literal["bf16", "fp32", "fp8"] = "bf16"
    recompute: Literal["none", "activation", "full"] = "activation"
    """Nothing, the MLP's activation function (ours only), or whole layers."""
    documents: int = 1
    """Documents of a sample, about equally long; more than one are isolated from each other (ours only)."""
    lean_optimizer: bool = False
    """Ours keeps both moments in bf16, and 16 more bits of each weight: 8 bytes instead of 16 a weight."""

    @property
    def tokens_per_step(self) -> int:
        """Tokens read in a step."""
        return self.seq_length * self.micro_batch_size * self.num_microbatches

    @property
    def flops_per_step(self) -> float:
        """Model FLOPs, nothing of what is recomputed."""
        return self.tokens_per_step * self.architecture.train_flops_per_token(self.seq_length)

    @property
    def dtype(self) -> torch.dtype:
        """Of weights and activations."""
        return torch.float32 if self.precision == "fp32" else torch.bfloat16

    def tokens_BS(self, step: int) -> list[np.ndarray]:
        """int64 tokens of each micro-batch of a step."""
        shape = (self.num_microbatches, self.micro_batch_size, self.seq_length)
        return list(np.random.default_rng(step % DISTINCT_STEPS).integers(0, self.architecture.vocab_size, shape))


def transformers_config(architecture: LlamaArchitecture) -> Any:
    """transformers' configuration of the same model, as an export writes it, for training."""
    from transformers import LlamaConfig

    from megatron_synE.checkpoint.hf.config import hf_config

    fields = {**hf_config(architecture, "float32", {}), "use_cache": False}
    return LlamaConfig.from_dict(fields, attn_implementation="sdpa")


def save_weights(architecture: LlamaArchitecture, folder: Path, device: torch.device, dtype: torch.dtype) -> None:
    """Random weights of transformers' initialisation in Hugging Face format, for all contenders to start from."""
    from transformers import LlamaForCausalLM
    from transformers.utils import logging

    logging.disable_progress_bar()
    torch.manual_seed(0)
    with device:
        LlamaForCausalLM(transformers_config(architecture)).to(dtype).save_pretrained(folder)


def save_weights_apart(architecture: LlamaArchitecture, folder: Path) -> None:
    """`save_weights` in fp32 on the CPU by a process of its own: the memory that it takes is not this one's."""
    arguments = (architecture, folder, torch.device("cpu"), torch.float32)
    process = multiprocessing.get_context("spawn").Process(target=save_weights, args=arguments)
    process.start()
    process.join()
    if process.exitcode != 0:
        raise RuntimeError("the weights could not be made: see above")


def make_step(contender: Contender, work: Work, device: torch.device, hf_dir: Path | None) -> Step:
    """Build model and optimizer, from the weights in `hf_dir` or random ones, and return the step."""
    if contender in ("hf_eager", "hf_compile"):
        return _hf_step(work, device, hf_dir, compiled=contender == "hf_compile")
    return _our_step(contender, work, device, hf_dir)


def _hf_step(work: Work, device: torch.device, hf_dir: Path | None, compiled: bool) -> Step:
    from transformers import LlamaForCausalLM
    from transformers.utils import logging

    logging.disable_progress_bar()
    if hf_dir is None:
        with device:
            model: Any = LlamaForCausalLM(transformers_config(work.architecture)).to(work.dtype)
    else:
        config = transformers_config(work.architecture)
        model = LlamaForCausalLM.from_pretrained(hf_dir, config=config, dtype=work.dtype).to(device)
    model.train()
    if work.recompute == "full":
        model.gradient_checkpointing_enable()
    forward = torch.compile(model) if compiled else model
    rule = OptimizerConfig()
    matrices = [p for p in model.parameters() if p.dim() > 1]
    norms = [p for p in model.parameters() if p.dim() <= 1]
    optimizer = torch.optim.AdamW(
        [{"params": matrices, "weight_decay": rule.weight_decay}, {"params": norms, "weight_decay": 0.0}],
        lr=LEARNING_RATE, betas=(rule.adam_beta1, rule.adam_beta2), eps=rule.adam_eps, fused=True,
    )  # fmt: skip
    batches = [[torch.from_numpy(t).to(device) for t in work.tokens_BS(step)] for step in range(DISTINCT_STEPS)]
    numbers = itertools.count()

    def step() -> float:
        losses = []
        for tokens_BS in batches[next(numbers) % DISTINCT_STEPS]:
            loss = forward(input_ids=tokens_BS, labels=tokens_BS).loss / work.num_microbatches
            loss.backward()
            losses.append(loss.detach())
        torch.nn.utils.clip_grad_norm_(model.parameters(), rule.clip_grad)
        optimizer.step()
        optimizer.zero_grad()
        return float(torch.stack(losses).sum())

    return step


def _our_step(implementation: str, work: Work, device: torch.device, hf_dir: Path | None) -> Step:
    from megatron_synE.runtime import initialize

    # Without the distributed optimizer a process alone keeps no copies for a gather that is not needed.
    parallel = ParallelConfig(use_distributed_optimizer=work.lean_optimizer, overlap_grad_reduce=False)
    runtime = initialize(parallel)
    assert runtime.device.type == device.type

    from megatron_synE.checkpoint import init_from_hf
    from megatron_synE.model import build_model_chunks
    from megatron_synE.training.optimizer import build_optimizer, wrap_data_parallel
    from megatron_synE.training.step import freeze_startup_objects, train_step

    moments: Any = "bf16" if work.lean_optimizer else "fp32"
    rule = OptimizerConfig(
        lr=LEARNING_RATE, use_precision_aware_optimizer=work.lean_optimizer, exp_avg_dtype=moments,
        exp_avg_sq_dtype=moments,
    )  # fmt: skip
    model: Any = ModelConfig(
        transformer_impl=implementation,  # type: ignore[arg-type]
        recompute="full" if work.recompute == "full" else "none",
        recompute_activation_func=work.recompute == "activation",
    )
    precision = PrecisionConfig(
        dtype="fp32" if work.precision == "fp32" else "bf16", fp8="hybrid" if work.precision == "fp8" else "none",
        fp8_recipe="tensorwise",
    )
    bare = build_model_chunks(work.architecture, model, parallel, precision, device=runtime.device)
    if hf_dir is not None:
        init_from_hf(bare, hf_dir)
    chunks = wrap_data_parallel(list(bare), parallel, precision)
    optimizer = build_optimizer(chunks, rule, parallel, precision)
    batches = [[_microbatch(work, tokens, device) for tokens in work.tokens_BS(n)] for n in range(DISTINCT_STEPS)]
    numbers = itertools.count()
    freeze_startup_objects()

    def step() -> float:
        microbatches = batches[next(numbers) % DISTINCT_STEPS]
        return train_step(chunks, optimizer, microbatches, learning_rate=LEARNING_RATE, num_components=1).loss

    return step


def _microbatch(work: Work, tokens_BS: np.ndarray, device: torch.device) -> Any:
    """The last token of a sample has no label, as in transformers' loss."""
    from megatron_synE.data.batches import assemble
    from megatron_synE.training.microbatches import to_microbatch

    batch_size = len(tokens_BS)
    starts = [n * work.seq_length // work.documents for n in range(work.documents)]
    batch = assemble(
        np.pad(tokens_BS, ((0, 0), (0, 1))), [starts] * batch_size, np.zeros(batch_size, np.int32),
        isolate_documents=work.documents > 1, eod_mask_loss=False, valid_tokens=[work.seq_length] * batch_size,
    )  # fmt: skip
    return to_microbatch(batch, device)
