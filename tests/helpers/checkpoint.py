"""A small model with a trained optimizer, and comparisons, for tests of checkpoints."""

from __future__ import annotations

import gc
from pathlib import Path
from typing import Any

import torch

from megatron_synE.config.model import LlamaArchitecture, ModelConfig
from megatron_synE.config.optimizer import OptimizerConfig
from megatron_synE.config.parallel import ParallelConfig
from megatron_synE.config.precision import PrecisionConfig

TINY = LlamaArchitecture(
    num_layers=4, hidden_size=32, ffn_hidden_size=48, num_attention_heads=4, num_query_groups=2, vocab_size=101,
    max_position_embeddings=64,
)  # fmt: skip
# 101 rows are padded to 104, and to 112 at TP 2: resharding has to cope with both.
MODEL = ModelConfig(make_vocab_size_divisible_by=8)


OPTIMIZER = OptimizerConfig(lr=0.01)


def build_training(
    parallel: ParallelConfig,
    dtype: str,
    architecture: LlamaArchitecture = TINY,
    optimizer: OptimizerConfig = OPTIMIZER,
    model: ModelConfig = MODEL,
) -> tuple[list[Any], Any]:
    """Model chunks in DistributedDataParallel and their optimizer, as the trainer builds them."""
    from megatron_synE.training.optimizer import build_optimizer, wrap_data_parallel

    chunks = build_model(parallel, dtype, architecture, model)
    precision = PrecisionConfig(dtype=dtype)  # type: ignore[arg-type]
    wrapped = wrap_data_parallel(list(chunks), parallel, precision)
    return wrapped, build_optimizer(wrapped, optimizer, parallel, precision)


def build_model(
    parallel: ParallelConfig, dtype: str, architecture: LlamaArchitecture = TINY, model: ModelConfig = MODEL
) -> list[Any]:
    """Bare model chunks under this layout; a second call in one process changes the layout."""
    from megatron_synE.model import build_model_chunks

    precision = PrecisionConfig(dtype=dtype)  # type: ignore[arg-type]
    _set_layout(parallel)
    return list(build_model_chunks(architecture, model, parallel, precision, device=torch.device("cpu")))


def _set_layout(parallel: ParallelConfig) -> None:
    from megatron.core import parallel_state

    from megatron_synE.runtime import initialize

    if torch.distributed.is_initialized():
        parallel_state.destroy_model_parallel()
        _end_all_groups_but_the_world()
    initialize(parallel)


def _end_all_groups_but_the_world() -> None:
    """megatron-core only forgets its groups, and each of gloo's has threads that wake a hundred times a second."""
    groups = torch.distributed.distributed_c10d._world.pg_map
    for group in [group for group in groups if group is not torch.distributed.group.WORLD]:
        torch.distributed.destroy_process_group(group)
    gc.collect()  # the last references to them stand in cycles of the model and its optimizer


def update(chunks: list[Any], optimizer: Any, num_steps: int = 1) -> None:
    """Optimizer steps on a made-up gradient that depends on each weight alone, so that replicas stay equal."""
    for _ in range(num_steps):
        for chunk in chunks:
            chunk.zero_grad_buffer()
        optimizer.zero_grad()
        for chunk in chunks:
            for parameter in chunk.parameters():
                parameter.main_grad.copy_(torch.sin(1000 * parameter.detach().float()))
        optimizer.step()


def local_state(chunks: list[Any], optimizer: Any) -> dict[str, torch.Tensor]:
    """Every weight, and every tensor of the inner optimizers, of this process."""
    named = [(f"{n}.{name}", p) for n, chunk in enumerate(chunks) for name, p in chunk.named_parameters()]
    state = {name: p.detach().clone() for name, p in named}
    parts = getattr(optimizer, "chained_optimizers", [optimizer])
    for number, part in enumerate(parts):
        for group_number, group in enumerate(part.optimizer.param_groups):
            for position, parameter in enumerate(group["params"]):
                prefix = f"optimizer.{number}.{group_number}.{position}"
                state[prefix] = parameter.detach().clone()
                for key, value in part.optimizer.state[parameter].items():
                    state[f"{prefix}.{key}"] = value.clone()
    return state


def differing_tensors(first: Path, second: Path, ignore: tuple[str, ...] = ("rng_state",)) -> list[str]:
    """Names of tensors that two checkpoints do not have bit for bit in common; padding rows of the vocabulary aside."""
    from megatron_synE.checkpoint.whole_tensors import WholeTensors

    one, two = WholeTensors(first), WholeTensors(second)
    names = (set(one) | set(two)) - set(ignore)
    return sorted(name for name in names if name not in one or name not in two or not _same(one, two, name))


def _same(one: Any, two: Any, name: str) -> bool:
    a, b = one.read(name), two.read(name)
    if name.endswith(("word_embeddings.weight", "output_layer.weight")):
        a, b = a[: TINY.vocab_size], b[: TINY.vocab_size]
    return a.dtype == b.dtype and torch.equal(a, b)
