"""Small training runs for tests: the same synthetic samples in every layout."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import torch

from megatron_synE.config.model import LlamaArchitecture, ModelConfig
from megatron_synE.config.optimizer import OptimizerConfig
from megatron_synE.config.parallel import ParallelConfig
from megatron_synE.config.precision import PrecisionConfig
from megatron_synE.data.batches import Batch, assemble
from megatron_synE.runtime import Runtime, initialize

# A vocabulary that needs other padding at other tensor-parallel sizes: 252 rows at 1, 256 at 2.
ARCHITECTURE = LlamaArchitecture(
    num_layers=4, hidden_size=64, ffn_hidden_size=176, num_attention_heads=8, num_query_groups=2, vocab_size=249,
    max_position_embeddings=64,
)  # fmt: skip
NUM_COMPONENTS = 3
SEQ_LENGTH = 32
GLOBAL_BATCH_SIZE = 8
MICRO_BATCH_SIZE = 2


def synthetic_batch(numbers: Iterable[int], isolate_documents: bool) -> Batch:
    """Samples that depend on their global number only; documents of uneven lengths, borders masked from the loss."""
    rows, starts = [], []
    for number in numbers:
        random = np.random.default_rng(int(number))
        rows.append(random.integers(0, ARCHITECTURE.vocab_size, SEQ_LENGTH + 1))
        starts.append(sorted(random.choice(np.arange(1, SEQ_LENGTH), size=number % 4, replace=False).tolist()))
    component_B = np.array([number % NUM_COMPONENTS for number in numbers], np.int32)
    return assemble(
        np.stack(rows), starts, component_B, isolate_documents=isolate_documents, eod_mask_loss=True
    )


class SmallRun:
    """Model, optimizer and steps under one layout; `checkpoint` gives the weights."""

    def __init__(
        self,
        parallel: ParallelConfig,
        *,
        checkpoint: str | None = None,
        precision: PrecisionConfig = PrecisionConfig(dtype="fp32"),  # noqa: B008 - frozen
        isolate_documents: bool = False,
        model: ModelConfig = ModelConfig(make_vocab_size_divisible_by=4),  # noqa: B008 - frozen
        optimizer: OptimizerConfig = OptimizerConfig(lr=1e-3),  # noqa: B008 - frozen
    ) -> None:
        self.runtime: Runtime = initialize(parallel)
        from megatron_synE.checkpoint import load_checkpoint
        from megatron_synE.model import build_model_chunks
        from megatron_synE.training.optimizer import build_optimizer, wrap_data_parallel

        self.isolate_documents = isolate_documents
        self.context_parallel_size = parallel.context_parallel_size
        bare = build_model_chunks(ARCHITECTURE, model, parallel, precision, device=self.runtime.device)
        self.chunks = wrap_data_parallel(bare, parallel, precision)
        self.optimizer = build_optimizer(self.chunks, optimizer, parallel, precision)
        if checkpoint is not None:
            load_checkpoint(
                checkpoint, architecture=ARCHITECTURE, model_chunks=self.chunks, optimizer=self.optimizer,
                weights_only=True,
            )  # fmt: skip

    def microbatches(self, step: int) -> list[Any]:
        """This process's part of the step."""
        from megatron_synE.training.microbatches import sample_numbers_of_rank, to_microbatch

        numbers = sample_numbers_of_rank(
            np.arange(step * GLOBAL_BATCH_SIZE, (step + 1) * GLOBAL_BATCH_SIZE), MICRO_BATCH_SIZE,
            self.runtime.data_parallel_rank, self.runtime.data_parallel_size,
        )  # fmt: skip
        return [
            to_microbatch(synthetic_batch(n, self.isolate_documents), self.runtime.device, self.context_parallel_size)
            for n in numbers
        ]

    def step(self, step: int) -> Any:
        """One optimizer step."""
        from megatron_synE.training.step import train_step

        return train_step(
            self.chunks, self.optimizer, self.microbatches(step), learning_rate=1e-3, num_components=NUM_COMPONENTS
        )

    def gradients(self, step: int = 0) -> dict[str, torch.Tensor]:
        """This process's reduced gradients of a step by global layer name; with the distributed optimizer gathered."""
        from megatron_synE.training.forward import run_microbatches

        for chunk in self.chunks:
            chunk.zero_grad_buffer()
        run_microbatches(self.chunks, self.microbatches(step), num_components=NUM_COMPONENTS, forward_only=False)
        for chunk in self.chunks:
            for buffer in chunk.buffers:
                if chunk.ddp_config.use_distributed_optimizer:
                    self._gather(buffer)
        return {
            name: parameter.main_grad.float().clone()
            for chunk in self.chunks
            for name, parameter in global_names(chunk.module)
        }

    @staticmethod
    def _gather(buffer: Any) -> None:
        group, size = buffer.data_parallel_group, buffer.data_parallel_world_size
        for bucket in buffer.buckets:
            mine = bucket.grad_data.chunk(size)[group.rank()].clone()
            torch.distributed.all_gather_into_tensor(bucket.grad_data, mine, group=group)

    def close(self) -> None:
        """Leave the parallel groups, so that another layout can follow in the same processes."""
        from megatron.core import parallel_state

        parallel_state.destroy_model_parallel()


def global_names(model: torch.nn.Module) -> list[tuple[str, torch.nn.Parameter]]:
    """Parameters with layers numbered as in the whole model."""
    named = []
    for name, parameter in model.named_parameters():
        if name.startswith("decoder.layers."):
            local = int(name.split(".")[2])
            number = model.decoder.layers[local].layer_number - 1  # type: ignore[union-attr,index]
            name = name.replace(f"layers.{local}.", f"layers.{number}.", 1)
        named.append((name, parameter))
    return named


def tensor_parallel_part(name: str, full: torch.Tensor, rank: int, size: int) -> torch.Tensor:
    """The rows or columns of a whole tensor that tensor-parallel rank `rank` holds."""
    if size == 1 or "layernorm" in name:
        return full
    if "linear_proj" in name or "linear_fc2" in name:
        return full.chunk(size, dim=1)[rank]
    if "linear_fc1" in name:
        gate, up = full.chunk(2)
        return torch.cat([gate.chunk(size)[rank], up.chunk(size)[rank]])
    return full.chunk(size)[rank]
