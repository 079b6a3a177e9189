"""What a model must not see: other documents in a pack, and the padding of the vocabulary."""

from __future__ import annotations

from typing import Any

import torch

from megatron_synE.config.model import ModelConfig
from megatron_synE.config.parallel import ParallelConfig
from megatron_synE.config.precision import PrecisionConfig
from megatron_synE.runtime import initialize
from tests.helpers.distributed import run_distributed
from tests.helpers.training import ARCHITECTURE

LENGTHS = [1, 7, 20, 4]


def build(impl: str, divisible_by: int = 4, **options: Any) -> Any:
    from megatron_synE.model import build_model_chunks

    torch.manual_seed(0)
    options |= {"make_vocab_size_divisible_by": divisible_by, "transformer_impl": impl, "init_method_std": 0.3}
    model = ModelConfig(**options)
    device = initialize(ParallelConfig()).device
    return build_model_chunks(ARCHITECTURE, model, ParallelConfig(), PrecisionConfig(dtype="fp32"), device=device)[0]


def leave() -> None:
    from megatron.core import parallel_state

    parallel_state.destroy_model_parallel()


def packed_and_alone() -> dict[str, float]:
    """Largest difference between losses of documents in a pack and on their own, for each implementation."""
    from megatron.core.packed_seq_params import PackedSeqParams

    differences = {}
    for impl in ("local", "fused"):
        model = build(impl)
        tokens = torch.randint(0, ARCHITECTURE.vocab_size, (1, sum(LENGTHS)))
        labels = torch.randint(0, ARCHITECTURE.vocab_size, (1, sum(LENGTHS)))
        boundaries = torch.tensor([0, *LENGTHS], dtype=torch.int32).cumsum(0).to(torch.int32)
        packed = PackedSeqParams(
            qkv_format="thd", cu_seqlens_q=boundaries, cu_seqlens_kv=boundaries, max_seqlen_q=max(LENGTHS),
            max_seqlen_kv=max(LENGTHS),
        )  # fmt: skip
        positions = torch.cat([torch.arange(length) for length in LENGTHS]).unsqueeze(0)
        together = model(tokens, positions, None, labels=labels, packed_seq_params=packed)
        alone = torch.cat(
            [
                model(part, torch.arange(part.shape[1]).unsqueeze(0), None, labels=target)
                for part, target in zip(tokens.split(LENGTHS, 1), labels.split(LENGTHS, 1), strict=True)
            ],
            dim=1,
        )
        joined = model(tokens, torch.arange(sum(LENGTHS)).unsqueeze(0), None, labels=labels)
        differences[impl] = float((together - alone).abs().max().detach())
        differences[f"{impl} joined"] = float((joined - alone).abs().max().detach())
        leave()
    return differences


def test_documents_in_a_pack_do_not_see_each_other() -> None:
    differences = run_distributed(packed_and_alone, 1)[0]
    assert differences["local"] < 1e-4
    assert differences["fused"] < 1e-4
    assert differences["local joined"] > 0.1, "joined documents must differ, or the test shows nothing"


def losses_with_padding(divisible_by: int, impl: str) -> dict[str, Any]:
    model = build(impl, divisible_by)
    with torch.no_grad():
        for parameter, rows in ((model.embedding.word_embeddings.weight, 249), (model.output_layer.weight, 249)):
            generator = torch.Generator().manual_seed(1)
            parameter[:rows] = torch.randn(rows, parameter.shape[1], generator=generator)
            parameter[rows:] = 100.0  # padding rows that would dominate every softmax
        for name, parameter in model.decoder.named_parameters():
            if parameter.dim() == 2:
                parameter.copy_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(len(name))) * 0.1)
    tokens = torch.arange(40).unsqueeze(0)
    for parameter in model.parameters():  # the data-parallel wrapper gives each weight one
        parameter.main_grad = torch.zeros(parameter.shape)
    losses = model(tokens, tokens, None, labels=tokens + 1)
    losses.sum().backward()
    weight = model.output_layer.weight
    # The compiled loss adds to the main gradient; plain torch leaves that to the data-parallel wrapper.
    gradient = weight.main_grad if weight.grad is None else weight.grad
    assert gradient[:249].abs().sum() > 0
    result = {"losses": losses.detach().clone(), "padding": float(gradient[249:].abs().sum())}
    leave()
    return result


def all_paddings() -> dict[str, Any]:
    return {f"{impl} {n}": losses_with_padding(n, impl) for impl in ("local", "fused") for n in (1, 64)}


def test_padding_rows_take_no_part_in_the_loss() -> None:
    results = run_distributed(all_paddings, 1)[0]
    for impl in ("local", "fused"):
        torch.testing.assert_close(results[f"{impl} 64"]["losses"], results["local 1"]["losses"], rtol=1e-5, atol=1e-5)
        assert results[f"{impl} 64"]["padding"] == 0.0


def kept_and_gradients(recompute_activation_func: bool) -> tuple[list[int], list[torch.Tensor]]:
    """Bytes that each layer keeps of SwiGLU's result between the passes, and all gradients."""
    model = build("fused", recompute_activation_func=recompute_activation_func)
    for parameter in model.parameters():
        parameter.main_grad = torch.zeros(parameter.shape)
    activated: list[torch.Tensor] = []
    for layer in model.decoder.layers:
        layer.mlp.linear_fc2.register_forward_pre_hook(lambda module, inputs: activated.append(inputs[0].detach()))
    tokens = torch.arange(24).unsqueeze(0)
    losses = model(tokens, tokens, None, labels=tokens + 1)
    kept = [tensor.untyped_storage().nbytes() for tensor in activated]
    losses.sum().backward()
    gradients = [parameter.main_grad.clone() for parameter in model.parameters()]
    leave()
    return kept, gradients


def recomputed_or_not() -> dict[str, Any]:
    return {"recomputed": kept_and_gradients(True), "kept": kept_and_gradients(False)}


def test_the_activation_is_recomputed_or_kept() -> None:
    results = run_distributed(recomputed_or_not, 1)[0]
    (dropped, recomputed), (kept, whole) = results["recomputed"], results["kept"]
    assert not any(dropped)
    assert kept == [24 * ARCHITECTURE.ffn_hidden_size * 4] * ARCHITECTURE.num_layers
    assert all(torch.equal(a, b) for a, b in zip(recomputed, whole, strict=True))
    assert sum(float(gradient.abs().sum()) for gradient in whole) > 0
