"""Which modules a transformer layer is made of."""

from __future__ import annotations

from megatron.core.fusions.fused_bias_dropout import get_bias_dropout_add
from megatron.core.tensor_parallel.layers import ColumnParallelLinear, RowParallelLinear
from megatron.core.transformer.attention import SelfAttention, SelfAttentionSubmodules
from megatron.core.transformer.enums import AttnMaskType
from megatron.core.transformer.mlp import MLP, MLPSubmodules
from megatron.core.transformer.spec_utils import ModuleSpec
from megatron.core.transformer.transformer_block import TransformerBlockSubmodules, get_num_layers_to_build
from megatron.core.transformer.transformer_config import TransformerConfig
from megatron.core.transformer.transformer_layer import TransformerLayer, TransformerLayerSubmodules

from megatron_synE.model.attention import DotProductAttention
from megatron_synE.model.fused_layer import FusedRMSNorm, fused_layer_spec
from megatron_synE.model.norm import RMSNorm

# Checkpoints carry the names of Transformer Engine's fused norm-and-linear layers, as megatron-core's own specs do,
# so that they move between implementations.
CHECKPOINT_NAMES = {
    "input_layernorm.": "self_attention.linear_qkv.layer_norm_",
    "pre_mlp_layernorm.": "mlp.linear_fc1.layer_norm_",
}


def local_layer_spec() -> ModuleSpec:
    """A Llama layer in plain torch: the oracle of the other implementations."""
    return ModuleSpec(
        module=TransformerLayer,
        submodules=TransformerLayerSubmodules(
            input_layernorm=RMSNorm,
            self_attention=ModuleSpec(
                module=SelfAttention,
                params={"attn_mask_type": AttnMaskType.causal},
                submodules=SelfAttentionSubmodules(
                    linear_qkv=ColumnParallelLinear,
                    core_attention=DotProductAttention,
                    linear_proj=RowParallelLinear,
                ),
            ),
            self_attn_bda=get_bias_dropout_add,
            pre_mlp_layernorm=RMSNorm,
            mlp=ModuleSpec(
                module=MLP, submodules=MLPSubmodules(linear_fc1=ColumnParallelLinear, linear_fc2=RowParallelLinear)
            ),
            mlp_bda=get_bias_dropout_add,
            sharded_state_dict_keys_map=CHECKPOINT_NAMES,
        ),
    )


def block_spec(
    config: TransformerConfig, transformer_impl: str, vp_stage: int | None, recompute_activation_func: bool = True
) -> TransformerBlockSubmodules:
    """The layers of one model chunk, and the norm behind the last one; only fused ones recompute the activation.

    Raises:
        ValueError: the implementation is unknown or not installed.
    """
    num_layers = get_num_layers_to_build(config, vp_stage)
    if transformer_impl == "local":
        return TransformerBlockSubmodules(layer_specs=[local_layer_spec()] * num_layers, layer_norm=RMSNorm)
    if transformer_impl == "fused":
        layers = [fused_layer_spec(CHECKPOINT_NAMES, recompute_activation_func)] * num_layers
        return TransformerBlockSubmodules(layer_specs=layers, layer_norm=FusedRMSNorm)
    if transformer_impl == "transformer_engine":
        return transformer_engine_block(num_layers)
    raise ValueError(f"model.transformer_impl: {transformer_impl} is unknown; use local, fused or transformer_engine")


def transformer_engine_block(num_layers: int) -> TransformerBlockSubmodules:
    """megatron-core's own layers on NVIDIA's Transformer Engine.

    Raises:
        ValueError: Transformer Engine is not installed, or was hidden because it does not work.
    """
    from megatron.core.models.gpt import gpt_layer_specs

    if not gpt_layer_specs.HAVE_TE:
        raise ValueError(
            "model.transformer_impl: Transformer Engine is not installed, or does not work here: tools/doctor.py tells "
            "why, and what to install; or use model.transformer_impl fused"
        )
    spec = gpt_layer_specs.get_gpt_layer_with_transformer_engine_spec()
    return TransformerBlockSubmodules(layer_specs=[spec] * num_layers, layer_norm=gpt_layer_specs.TENorm)
