"""A checkpoint of ours as the model that scores documents (`corpus.perplexity`). B windows, T tokens."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from megatron_synE.checkpoint import load_checkpoint, read_state
from megatron_synE.checkpoint.layout import read_architecture, resolve
from megatron_synE.config.model import ModelConfig
from megatron_synE.config.parallel import ParallelConfig
from megatron_synE.config.precision import PrecisionConfig
from megatron_synE.model import build_model_chunks
from megatron_synE.runtime import initialize, shut_down


class CheckpointModel:
    """Implements `corpus.perplexity.WindowModel`. Each process holds the whole model and scores by itself.

    Args:
        checkpoint: a step's folder, or a run's (then its latest step).
        device: auto, cuda or cpu.
        dtype: bfloat16 or float32.
        max_window_tokens: longest input; None takes the model's context, at most 8,192.

    Raises:
        ValueError: there is no complete checkpoint.
    """

    def __init__(self, checkpoint: str | Path, device: str, dtype: str, max_window_tokens: int | None = None) -> None:
        directory = resolve(checkpoint)
        architecture = read_architecture(directory)
        parallel = ParallelConfig(device=device)  # type: ignore[arg-type]
        precision = PrecisionConfig(dtype="bf16" if dtype == "bfloat16" else "fp32")
        self._device = initialize(parallel).device
        self._chunk = build_model_chunks(architecture, ModelConfig(), parallel, precision, device=self._device)[0]
        load_checkpoint(directory, architecture=architecture, model_chunks=[self._chunk], weights_only=True)
        self._chunk.eval()
        self.vocab_size = architecture.vocab_size
        self.max_window_tokens = max_window_tokens or min(architecture.max_position_embeddings, 8192)
        step = read_state(directory)["step"]
        self._info = {"type": "checkpoint", "path": str(directory), "step": step, "dtype": dtype}

    def info(self) -> dict[str, Any]:
        """What determines the scores."""
        return self._info

    @torch.inference_mode()
    def sum_nll(self, tokens_BT: npt.NDArray[np.int64], lengths_B: npt.NDArray[np.int64]) -> npt.NDArray[np.float64]:
        """Return [B] sums of -ln p(token t | tokens before t) over 1 <= t < length; the rest of a row is padding."""
        if tokens_BT.max(initial=0) >= self.vocab_size:
            raise ValueError(
                f"token {tokens_BT.max()} is not in the checkpoint's vocabulary of {self.vocab_size}: "
                "the corpus was made with another tokenizer"
            )
        tokens = torch.from_numpy(tokens_BT).to(self._device)
        positions = torch.arange(tokens.shape[1] - 1, device=self._device).expand(tokens.shape[0], -1)
        predicted_BT = positions + 1 < torch.from_numpy(lengths_B).to(self._device)[:, None]
        losses_BT = self._chunk(
            input_ids=tokens[:, :-1], position_ids=positions, attention_mask=None, labels=tokens[:, 1:].contiguous()
        )
        return torch.where(predicted_BT, losses_BT.double(), 0.0).sum(1).cpu().numpy()

    def close(self) -> None:
        """Leave the process groups."""
        shut_down()
