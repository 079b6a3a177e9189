"""How the model and the data are split over processes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from megatron_synE.config.model import LlamaArchitecture


@dataclass(frozen=True)
class ParallelConfig:
    """Sizes of megatron-core's parallel dimensions; data parallelism takes the processes that are left."""

    tensor_model_parallel_size: int = 1
    """Processes that share each layer."""
    pipeline_model_parallel_size: int = 1
    """Processes that share the stack of layers."""
    virtual_pipeline_model_parallel_size: int | None = None
    """Model chunks per pipeline process (interleaved schedule); none for one chunk."""
    context_parallel_size: int = 1
    """Processes that share each sequence."""
    sequence_parallel: bool = False
    """Split norms and residuals along the sequence over the tensor-parallel processes."""
    use_distributed_optimizer: bool = True
    """Split optimizer state over the data-parallel processes (ZeRO-1)."""
    overlap_grad_reduce: bool = True
    """Reduce gradients while the backward pass still runs."""
    overlap_param_gather: bool = False
    """Gather updated parameters while the next forward pass already runs (distributed optimizer only)."""
    ddp_bucket_size: int | None = None
    """Parameters whose gradients are reduced together, and gathered together; none for megatron-core's choice of 40
    million, or a million a data-parallel process where that is more."""
    ddp_pad_buckets_for_high_nccl_busbw: bool = False
    """Pad these buckets to a size that nccl moves fast over many processes (distributed optimizer only)."""
    align_grad_reduce: bool = False
    """Virtual stages: all pipeline processes reduce gradients at the same time, not each as soon as it can."""
    align_param_gather: bool = False
    """The same for the gathering of parameters."""
    overlap_p2p_comm_warmup_flush: bool = False
    """Virtual stages: exchange beside computation also at the pipeline's filling and emptying."""
    tp_comm_overlap: bool = False
    """Move tensor-parallel parts beside the products that need or make them (Transformer Engine, sequence_parallel)."""
    device: Literal["auto", "cuda", "cpu"] = "auto"
    """cuda with nccl, or cpu with gloo; auto takes a GPU where there is one."""
    timeout_minutes: int = 30
    """How long a collective may wait for a lost process."""
    hang_timeout_minutes: float = 10
    """How long a run may stand still before it says where, and ends with status 75; less than `timeout_minutes`, which
    also limits (by nine tenths) what may take long: reading and writing checkpoints."""

    @property
    def model_parallel_size(self) -> int:
        """Processes that hold one replica of the model."""
        return self.tensor_model_parallel_size * self.pipeline_model_parallel_size * self.context_parallel_size

    def problems(self) -> list[str]:
        """Contradictions among these fields."""
        found = []
        for name in ("tensor_model_parallel_size", "pipeline_model_parallel_size", "context_parallel_size",
                     "timeout_minutes"):  # fmt: skip
            if getattr(self, name) < 1:
                found.append(f"parallel.{name}: {getattr(self, name)} is not positive; use 1 or more")
        if not 0 < self.hang_timeout_minutes < self.timeout_minutes:
            found.append(
                f"parallel.hang_timeout_minutes: {self.hang_timeout_minutes:g} is not between 0 and "
                f"parallel.timeout_minutes {self.timeout_minutes}; lower it, or raise that"
            )
        virtual = self.virtual_pipeline_model_parallel_size
        if virtual is not None and virtual < 2:
            found.append(f"parallel.virtual_pipeline_model_parallel_size: {virtual} is below 2; use null or more")
        if virtual is not None and self.pipeline_model_parallel_size < 2:
            found.append(
                "parallel.virtual_pipeline_model_parallel_size: it needs parallel.pipeline_model_parallel_size of 2 or "
                "more; raise that, or use null"
            )
        if self.sequence_parallel and self.tensor_model_parallel_size == 1:
            found.append("parallel.sequence_parallel: needs parallel.tensor_model_parallel_size above 1; turn it off")
        if self.overlap_param_gather and not (self.use_distributed_optimizer and self.overlap_grad_reduce):
            found.append(
                "parallel.overlap_param_gather: needs parallel.use_distributed_optimizer and "
                "parallel.overlap_grad_reduce; turn both on, or this off"
            )
        return found + self._overlap_problems()

    def _overlap_problems(self) -> list[str]:
        virtual = self.virtual_pipeline_model_parallel_size is not None
        needs = {
            "align_grad_reduce": {
                "overlap_grad_reduce": self.overlap_grad_reduce, "virtual_pipeline_model_parallel_size": virtual,
            },
            "align_param_gather": {
                "overlap_param_gather": self.overlap_param_gather, "virtual_pipeline_model_parallel_size": virtual,
            },
            "overlap_p2p_comm_warmup_flush": {"virtual_pipeline_model_parallel_size": virtual},
            "ddp_bucket_size": {"overlap_grad_reduce": self.overlap_grad_reduce},
            "ddp_pad_buckets_for_high_nccl_busbw": {"use_distributed_optimizer": self.use_distributed_optimizer},
            "tp_comm_overlap": {"sequence_parallel": self.sequence_parallel},
        }  # fmt: skip
        found = [
            f"parallel.{name}: needs parallel.{needed}; set that, or drop this"
            for name, conditions in needs.items()
            for needed, holds in conditions.items()
            if getattr(self, name) and not holds
        ]
        if self.ddp_bucket_size is not None and self.ddp_bucket_size < 1:
            found.append(f"parallel.ddp_bucket_size: {self.ddp_bucket_size} is not positive; use 40000000, or null")
        return found

    def problems_with(self, model: LlamaArchitecture, seq_length: int) -> list[str]:
        """Sizes of `model` and of a sequence that this layout cannot split."""
        found = []
        tp, cp = self.tensor_model_parallel_size, self.context_parallel_size
        for name in ("num_attention_heads", "num_query_groups", "ffn_hidden_size"):
            if getattr(model, name) % tp:
                found.append(
                    f"parallel.tensor_model_parallel_size: {tp} does not divide model.{name} {getattr(model, name)}"
                )
        stages = self.pipeline_model_parallel_size * (self.virtual_pipeline_model_parallel_size or 1)
        if model.num_layers % stages:
            found.append(
                f"parallel.pipeline_model_parallel_size: {stages} stages (with virtual ones) do not divide "
                f"model.num_layers {model.num_layers}"
            )
        if self.sequence_parallel and seq_length % (tp * cp):
            found.append(f"data.seq_length: {seq_length} is not divisible by the {tp * cp} processes that split it")
        if cp > 1 and seq_length % (2 * cp):
            found.append(f"data.seq_length: {seq_length} is no multiple of 2 x parallel.context_parallel_size {2 * cp}")
        return found

    def problems_with_world(self, world_size: int) -> list[str]:
        """Whether `world_size` processes can hold whole replicas of the model."""
        if world_size % self.model_parallel_size:
            return [
                f"parallel: tensor {self.tensor_model_parallel_size} x pipeline {self.pipeline_model_parallel_size} x "
                f"context {self.context_parallel_size} needs a multiple of {self.model_parallel_size} processes, but "
                f"{world_size} were started; change torchrun --nproc-per-node (and --nnodes), or the sizes"
            ]
        return []
