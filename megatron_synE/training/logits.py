"""The logits of a Hugging Face Llama in transformers, and of a checkpoint of ours in our model, in fp32.

One model is in memory at a time. S tokens of a prompt, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import psutil
import torch

from megatron_synE.checkpoint import load_checkpoint
from megatron_synE.checkpoint.layout import read_architecture
from megatron_synE.config.model import LlamaArchitecture, ModelConfig
from megatron_synE.config.parallel import ParallelConfig
from megatron_synE.config.precision import PrecisionConfig
from megatron_synE.model import build_model_chunks
from megatron_synE.runtime import initialize, shut_down

TOLERANCES = {None: 1e-4, "float32": 1e-4, "float16": 1e-2, "bfloat16": 5e-2}
"""Largest difference that is accepted, as a share of the largest logit, by the dtype that weights were brought to; None
for weights that were left as they are: then only the order of summation differs."""

# Beside the weights: what loading holds, and activations.
_MEMORY_FACTOR = 1.25


def largest_difference(hf_dir: str | Path, checkpoint: str | Path, prompts: Sequence[Sequence[int]]) -> float:
    """Largest difference of two logits of the same token, as a share of the largest logit.

    Columns that an extended vocabulary of the checkpoint adds are not compared.

    Raises:
        ValueError: too little memory for the model; a side is missing or damaged.
    """
    architecture = read_architecture(checkpoint)
    needed_bytes = int(architecture.num_parameters() * 4 * _MEMORY_FACTOR)
    available_bytes = psutil.virtual_memory().available
    if needed_bytes > available_bytes:
        raise ValueError(
            f"--verify logits: the model needs {needed_bytes:,} bytes of memory, {available_bytes:,} are available; "
            "use --verify tensors, which compares all weights bit for bit in little memory"
        )
    theirs = _logits_of_hf(hf_dir, prompts)
    ours = _logits_of_checkpoint(checkpoint, architecture, prompts)
    largest = max(float(logits_SV.abs().max()) for logits_SV in theirs)
    differences = [
        float((own_SV[:, : their_SV.shape[1]] - their_SV).abs().nan_to_num(nan=torch.inf).max())
        for own_SV, their_SV in zip(ours, theirs, strict=True)
    ]
    return max(differences) / largest if largest else max(differences)


def _logits_of_hf(hf_dir: str | Path, prompts: Sequence[Sequence[int]]) -> list[torch.Tensor]:
    from transformers import LlamaForCausalLM
    from transformers.utils import logging

    logging.disable_progress_bar()
    model = LlamaForCausalLM.from_pretrained(str(hf_dir), dtype=torch.float32, attn_implementation="eager").eval()
    with torch.inference_mode():
        return [model(torch.tensor([prompt])).logits[0] for prompt in prompts]


def _logits_of_checkpoint(
    checkpoint: str | Path, architecture: LlamaArchitecture, prompts: Sequence[Sequence[int]]
) -> list[torch.Tensor]:
    parallel = ParallelConfig()
    runtime = initialize(parallel)
    try:
        precision = PrecisionConfig(dtype="fp32")
        chunks: list[Any] = list(
            build_model_chunks(architecture, ModelConfig(), parallel, precision, device=runtime.device)
        )
        load_checkpoint(checkpoint, architecture=architecture, model_chunks=chunks)
        logits = []
        with torch.no_grad():
            for prompt in prompts:
                tokens_BS = torch.tensor([prompt], device=runtime.device)
                positions_BS = torch.arange(len(prompt), device=runtime.device)[None]
                logits_BSV = chunks[0].eval()(tokens_BS, positions_BS, None)
                logits.append(logits_BSV[0, :, : architecture.vocab_size].cpu())
        return logits
    finally:
        shut_down()
