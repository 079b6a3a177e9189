"""The whole job: every section, and the checks between sections."""

from __future__ import annotations

from dataclasses import dataclass, field

from megatron_synE.config.checkpoint import CheckpointConfig
from megatron_synE.config.data import DataConfig
from megatron_synE.config.evaluation import EvaluationConfig
from megatron_synE.config.healing import HealingConfig
from megatron_synE.config.model import LlamaArchitecture, ModelConfig
from megatron_synE.config.optimizer import OptimizerConfig, ScheduleConfig
from megatron_synE.config.parallel import ParallelConfig
from megatron_synE.config.precision import PrecisionConfig
from megatron_synE.config.training import LoggingConfig, TrainingConfig


@dataclass(frozen=True)
class JobConfig:
    """One run of pretrain_llama3_synE.py."""

    model: ModelConfig = field(default_factory=ModelConfig)
    """Which Llama."""
    parallel: ParallelConfig = field(default_factory=ParallelConfig)
    """Split over processes."""
    precision: PrecisionConfig = field(default_factory=PrecisionConfig)
    """Number formats."""
    data: DataConfig = field(default_factory=DataConfig)
    """What is read, in which order."""
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    """AdamW."""
    schedule: ScheduleConfig = field(default_factory=ScheduleConfig)
    """Learning rate over the run."""
    training: TrainingConfig = field(default_factory=TrainingConfig)
    """Batches and length."""
    healing: HealingConfig = field(default_factory=HealingConfig)
    """Spikes and numbers that are not finite."""
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)
    """Held-out loss."""
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    """Save, resume, start from a Hugging Face model."""
    logging: LoggingConfig = field(default_factory=LoggingConfig)
    """Where numbers go."""

    def problems(
        self, world_size: int, base: LlamaArchitecture | None = None, *, base_is_known: bool = True
    ) -> list[str]:
        """Every contradiction that shows without building anything.

        Args:
            base: the architecture of the model that is started from, if any.
            base_is_known: False where there is one that could not be read; the model's sizes are not judged then.
        """
        found = []
        for section in (self.model, self.parallel, self.precision, self.data, self.optimizer, self.schedule,
                        self.training, self.healing, self.evaluation, self.checkpoint, self.logging):  # fmt: skip
            found += section.problems()
        found += self.evaluation.guard_problems(self.data)
        if base_is_known or self.model.preset is not None:
            found += self._model_problems(base)
        if self.parallel.model_parallel_size > 0:
            found += self._batch_problems(world_size)
        if self.parallel.tp_comm_overlap and self.model.transformer_impl != "transformer_engine":
            found.append("parallel.tp_comm_overlap: needs model.transformer_impl transformer_engine; use it")
        if self.logging.wandb.project is not None and self.logging.directory is None and self.checkpoint.save is None:
            found.append("logging.wandb.project: needs logging.directory or checkpoint.save to keep the run's id in")
        if self.evaluation.guard.is_on and self.evaluation.guard.reaction == "stop" and self.checkpoint.save is None:
            found.append("evaluation.guard.reaction: stop saves the run first; give checkpoint.save, or use warn")
        return found + self._fp8_problems(base) + self._optimizer_problems()

    def _fp8_problems(self, base: LlamaArchitecture | None) -> list[str]:
        if self.precision.fp8 == "none" or self.model.transformer_impl == "transformer_engine":
            return []
        if self.model.transformer_impl != "fused":
            return ["precision.fp8: needs model.transformer_impl fused or transformer_engine"]
        found = []
        if self.precision.fp8_recipe != "tensorwise":
            found.append(
                "precision.fp8_recipe: model.transformer_impl fused scales by the current tensor; use tensorwise"
            )
        try:
            sizes = self._sizes_of_products(self.model.architecture(base))
        except ValueError:
            return found  # reported with the model's fields
        found += [
            f"precision.fp8: {name} is {size} on each process, and 8-bit products need multiples of 16; use none"
            for name, size in sizes.items()
            if size % 16
        ]
        return found

    def _sizes_of_products(self, model: LlamaArchitecture) -> dict[str, int]:
        """Dimensions of the linear layers' products on one process, by what they come from."""
        tp = max(1, self.parallel.tensor_model_parallel_size)
        tokens = self.training.micro_batch_size * self.data.seq_length // max(1, self.parallel.context_parallel_size)
        return {
            "model.hidden_size": model.hidden_size,
            "model.ffn_hidden_size": model.ffn_hidden_size // tp,
            "model.num_attention_heads x head width": model.num_attention_heads * model.head_dim // tp,
            "model.num_query_groups x head width": model.num_query_groups * model.head_dim // tp,
            "training.micro_batch_size x data.seq_length": tokens,
        }

    def _optimizer_problems(self) -> list[str]:
        if not self.optimizer.use_precision_aware_optimizer:
            return []
        found = []
        if not self.parallel.use_distributed_optimizer:
            found.append(
                "optimizer.use_precision_aware_optimizer: needs parallel.use_distributed_optimizer; turn that on, or "
                "this off"
            )
        if self.precision.dtype != "bf16":
            found.append(
                "optimizer.use_precision_aware_optimizer: needs precision.dtype bf16; set that, or turn this off"
            )
        return found

    def _model_problems(self, base: LlamaArchitecture | None) -> list[str]:
        try:
            architecture = self.model.architecture(base)
        except ValueError as error:
            return [str(error)]
        found = architecture.problems() or self.parallel.problems_with(architecture, self.data.seq_length)
        if self.data.seq_length > architecture.max_position_embeddings:
            found.append(
                f"data.seq_length: {self.data.seq_length} is longer than model.max_position_embeddings "
                f"{architecture.max_position_embeddings}; shorten it, or raise the model's context on purpose"
            )
        return found

    def _batch_problems(self, world_size: int) -> list[str]:
        found = self.parallel.problems_with_world(world_size)
        if found:
            return found
        data_parallel_size = world_size // self.parallel.model_parallel_size
        found = self.training.problems_with_layout(data_parallel_size)
        if not found and self.parallel.virtual_pipeline_model_parallel_size and self.training.micro_batch_size > 0:
            for size in self.training.global_batch_sizes():
                num_microbatches = size // (self.training.micro_batch_size * data_parallel_size)
                if num_microbatches % self.parallel.pipeline_model_parallel_size:
                    return [
                        f"training.global_batch_size: {num_microbatches} micro-batches per step are not a multiple of "
                        f"parallel.pipeline_model_parallel_size {self.parallel.pipeline_model_parallel_size}, which "
                        "the interleaved schedule needs; enlarge the global batch"
                    ]
        return found
