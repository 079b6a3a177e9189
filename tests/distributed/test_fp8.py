"""The fused layers with 8-bit products: layer for layer at TP2 with sequence parallelism, and 30 steps beside bf16."""

from __future__ import annotations

from typing import Any

import torch

from megatron_synE.config.model import ModelConfig
from megatron_synE.config.parallel import ParallelConfig
from megatron_synE.config.precision import PrecisionConfig
from megatron_synE.runtime import initialize
from tests.helpers.distributed import run_distributed
from tests.helpers.training import SmallRun

TP2 = {"tensor_model_parallel_size": 2}
STEPS = 30
TOKENS, INPUTS, OUTPUTS = 32, 64, 96
BF16_ROUNDING = 2.0**-8


def precision(fp8: str, **fields: Any) -> PrecisionConfig:
    return PrecisionConfig(fp8=fp8, fp8_recipe="tensorwise", **fields)  # type: ignore[arg-type]


def small_run(parallel: ParallelConfig, fp8: str, recompute: str = "none", **fields: Any) -> SmallRun:
    model = ModelConfig(make_vocab_size_divisible_by=4, recompute=recompute)  # type: ignore[arg-type]
    return SmallRun(parallel, precision=precision(fp8, **fields), model=model)


def linear(kind: str, parallel: ParallelConfig, weight_OI: torch.Tensor, fuse: bool) -> Any:
    """A layer with this process's part of the weight; its gradient goes to the main gradient where that is fused."""
    from megatron.core.transformer.transformer_config import TransformerConfig

    from megatron_synE.model import fp8_linear
    from megatron_synE.model.megatron_hooks import install_gradient_accumulation_fusion

    install_gradient_accumulation_fusion()
    size = parallel.tensor_model_parallel_size
    config = TransformerConfig(
        num_layers=1, hidden_size=INPUTS, num_attention_heads=2, tensor_model_parallel_size=size,
        sequence_parallel=parallel.sequence_parallel, params_dtype=torch.bfloat16, bf16=True,
        use_cpu_initialization=True, gradient_accumulation_fusion=fuse, add_bias_linear=False,
    )  # fmt: skip
    arguments: dict[str, Any] = {"config": config, "init_method": torch.nn.init.zeros_, "bias": False}
    if kind == "column":
        layer: Any = fp8_linear.Fp8ColumnParallelLinear(INPUTS, OUTPUTS, skip_bias_add=True, **arguments)
    else:
        layer = fp8_linear.Fp8RowParallelLinear(
            INPUTS, OUTPUTS, input_is_parallel=True, skip_bias_add=True, **arguments
        )
    layer.gradient_format = fp8_linear.GRADIENT_FORMATS["hybrid"]
    rank = torch.distributed.get_rank() if size > 1 else 0
    layer.weight.data.copy_(weight_OI.chunk(size, dim=0 if kind == "column" else 1)[rank])
    if fuse:
        layer.weight.main_grad = torch.ones(layer.weight.shape)
        layer.weight.grad_added_to_main_grad = False
    return layer


def passes(kind: str, parallel: ParallelConfig, fuse: bool) -> dict[str, torch.Tensor]:
    """Forward and backward of one layer, with inputs that depend on no layout; this process's parts."""
    generator = torch.Generator().manual_seed(3)
    weight_OI = torch.randn(OUTPUTS, INPUTS, generator=generator).bfloat16() / 8
    input_SBI = torch.randn(TOKENS, 1, INPUTS, generator=generator).bfloat16()
    gradient_SBO = torch.randn(TOKENS, 1, OUTPUTS, generator=generator).bfloat16()
    size, rank = parallel.tensor_model_parallel_size, torch.distributed.get_rank()
    if size > 1 and kind == "row":
        input_SBI = input_SBI.chunk(size, dim=2)[rank]
    if size > 1 and kind == "column" and parallel.sequence_parallel:
        input_SBI = input_SBI.chunk(size)[rank]
    if size > 1 and kind == "column":
        gradient_SBO = gradient_SBO.chunk(size, dim=2)[rank]
    if size > 1 and kind == "row" and parallel.sequence_parallel:
        gradient_SBO = gradient_SBO.chunk(size)[rank]
    layer = linear(kind, parallel, weight_OI, fuse)
    input_SBI = input_SBI.contiguous().requires_grad_()
    output, _ = layer(input_SBI)
    output.backward(gradient_SBO)
    dweight = layer.weight.main_grad - 1 if fuse else layer.weight.grad
    dinput = torch.empty(0) if input_SBI.grad is None else input_SBI.grad
    return {"output": output.detach().float(), "dinput": dinput.float(), "dweight": dweight.float()}


def all_passes(layouts: list[dict[str, Any]]) -> dict[str, dict[str, torch.Tensor]]:
    from megatron.core import parallel_state

    results = {}
    for fields in layouts:
        parallel = ParallelConfig(**fields)
        initialize(parallel)
        for kind in ("column", "row"):
            for fuse in (False, True):
                results[f"{kind} {fuse} {parallel.sequence_parallel}"] = passes(kind, parallel, fuse)
        parallel_state.destroy_model_parallel()
    return results


def whole(kind: str, name: str, parts: list[torch.Tensor], sequence_parallel: bool) -> torch.Tensor:
    """What the processes hold together."""
    if name == "dweight":
        return torch.cat(parts, dim=0 if kind == "column" else 1)
    split_by_features = (kind == "column") == (name == "output")
    if split_by_features:
        return torch.cat(parts, dim=2)
    return torch.cat(parts) if sequence_parallel else parts[0]


def test_tensor_parallel_layers_are_the_whole_layer() -> None:
    alone = run_distributed(all_passes, 1, [{}])[0]
    parts = run_distributed(all_passes, 2, [TP2, {**TP2, "sequence_parallel": True}])
    for kind in ("column", "row"):
        for fuse in (False, True):
            expected = alone[f"{kind} {fuse} False"]
            for sequence_parallel in (False, True):
                key = f"{kind} {fuse} {sequence_parallel}"
                for name, value in expected.items():
                    found = whole(kind, name, [part[key][name] for part in parts], sequence_parallel)
                    # Scales are powers of two: all but sums over processes, in bf16, is the same to the last bit,
                    # where no number is subnormal in one shard's scale and not in the other's.
                    scale = value.abs().max()
                    torch.testing.assert_close(found, value, rtol=0, atol=float(2 * BF16_ROUNDING * scale), msg=key)
                    if (kind, name) == ("column", "output"):
                        assert torch.equal(found, value), key


def test_gradients_of_a_layer_are_those_of_its_product() -> None:
    alone = run_distributed(all_passes, 1, [{}])[0]
    generator = torch.Generator().manual_seed(3)
    weight_OI = torch.randn(OUTPUTS, INPUTS, generator=generator).bfloat16().double() / 8
    input_NI = torch.randn(TOKENS, 1, INPUTS, generator=generator).bfloat16().double()[:, 0]
    gradient_NO = torch.randn(TOKENS, 1, OUTPUTS, generator=generator).bfloat16().double()[:, 0]
    exact = {
        "output": input_NI @ weight_OI.t(), "dinput": gradient_NO @ weight_OI, "dweight": gradient_NO.t() @ input_NI
    }  # fmt: skip
    # Roundings of the operands add up as random numbers do: e4m3 errs by 2^-4 at most, 0.026 in the root mean square,
    # e5m2 by twice that.
    limits = {"output": 0.045, "dinput": 0.07, "dweight": 0.07}
    for name, value in exact.items():
        for key in ("column False False", "row True False"):
            error = (alone[key][name].double().view(value.shape) - value).norm() / value.norm()
            assert 0.005 < error < limits[name], (key, name, error)


def layers_of_a_chunk() -> list[list[str]]:
    found = []
    for fp8, fields in (("hybrid", {}), ("hybrid", {"first_last_layers_bf16": True}), ("none", {})):
        run = small_run(ParallelConfig(), fp8, **fields)
        model = run.chunks[0].module
        found.append(sorted(f"{name} {tensor.dtype}" for name, tensor in model.named_parameters()))
        found.append([type(layer.mlp.linear_fc2).__name__ for layer in model.decoder.layers])
        found.append([type(model.output_layer).__name__, type(model.embedding.word_embeddings).__name__])
        run.close()
    return found


def test_layers_are_8_bit_and_both_ends_are_not() -> None:
    names, every, ends, names_again, inner, ends_again, *plain = run_distributed(layers_of_a_chunk, 1)[0]
    assert names == names_again == plain[0]
    eight, sixteen = "Fp8RowParallelLinear", "RowParallelLinear"
    assert every == [eight] * 4 and inner == [sixteen, eight, eight, sixteen]
    assert ends == ends_again == ["LossLayer", "FusedVocabParallelEmbedding"]


def curves(cases: list[list[str]], layout: dict[str, Any]) -> list[list[float]]:
    found = []
    for fp8, recompute in cases:
        run = small_run(ParallelConfig(**layout), fp8, recompute)
        found.append([run.step(step % 2).loss for step in range(STEPS)])
        run.close()
    return found


def test_thirty_steps_stay_near_those_of_bf16() -> None:
    bf16, hybrid, e4m3, recomputed = run_distributed(
        curves, 1, [["none", "none"], ["hybrid", "none"], ["e4m3", "none"], ["hybrid", "full"]], {}
    )[0]
    split = run_distributed(curves, 2, [["hybrid", "none"]], {**TP2, "sequence_parallel": True})
    assert bf16[-1] < 0.8 * bf16[0]
    assert split[0] == split[1]
    for curve in (hybrid, e4m3, split[0][0]):
        assert curve != bf16
        assert max(abs(a - b) / b for a, b in zip(curve, bf16, strict=True)) < 0.02
    assert recomputed == hybrid
