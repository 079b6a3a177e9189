"""The same weights give the same logits in transformers' Llama and in ours."""

from __future__ import annotations

from pathlib import Path

import torch

from megatron_synE.config.parallel import ParallelConfig
from tests.helpers.distributed import run_distributed
from tests.helpers.hf_llama import SHAPES, make_hf_llama

NUM_TOKENS = 160


def _tokens(vocab_size: int) -> torch.Tensor:
    return torch.randint(0, vocab_size, (2, NUM_TOKENS), generator=torch.Generator().manual_seed(1))


def _our_logits(folder: str, tensor_model_parallel_size: int) -> dict[str, torch.Tensor]:
    """`[B, S, V]` fp32 of every shape, padding columns dropped."""
    from megatron.core.tensor_parallel import gather_from_tensor_model_parallel_region

    from megatron_synE.checkpoint import architecture_from_hf, init_from_hf
    from tests.helpers.checkpoint import build_model

    logits = {}
    for shape in SHAPES:
        architecture = architecture_from_hf(Path(folder) / shape)
        parallel = ParallelConfig(tensor_model_parallel_size=tensor_model_parallel_size)
        (model,) = build_model(parallel, "fp32", architecture)
        init_from_hf([model], Path(folder) / shape)
        tokens_BS = _tokens(architecture.vocab_size)
        positions_BS = torch.arange(NUM_TOKENS).expand_as(tokens_BS)
        with torch.no_grad():
            logits_BSV = gather_from_tensor_model_parallel_region(model(tokens_BS, positions_BS, None))
        logits[shape] = logits_BSV[..., : architecture.vocab_size].contiguous()
    return logits


def test_logits_agree_with_transformers(tmp_path: Path) -> None:
    expected = {}
    for shape in SHAPES:
        model = make_hf_llama(tmp_path / shape, shape)
        with torch.no_grad():
            expected[shape] = model(_tokens(model.config.vocab_size)).logits
    for tp_size in (1, 2):
        for logits in run_distributed(_our_logits, tp_size, str(tmp_path), tp_size):
            for shape in SHAPES:
                assert expected[shape].std() > 0.5  # logits that say something
                difference = float((logits[shape] - expected[shape]).abs().max())
                print(f"{shape}, TP {tp_size}: max abs difference {difference:.1e}")
                assert difference <= 1e-4, shape
