"""The layer spec of a model for megatron-core, with masks where it has some.

A layer of megatron-core is put together from a spec: a table of modules, one for each place. This
file is the only one that says which places take another module than the stock one, and when. Where
nothing is masked and nothing is asked for that megatron-core lacks, the table is the stock one but
for kernels: attention and norms are torch's own, with the same parameters.
"""

from typing import Any

from flmgrow.model.config import ModelConfig
from flmgrow.model.masks import Dimension
from flmgrow.trainer.megatron.attention import (
    DepthScaledAttention,
    FusedAttention,
    XposSelfAttention,
)
from flmgrow.trainer.megatron.core import (
    ModuleSpec,
    TransformerBlockSubmodules,
    get_gpt_layer_local_spec,
    get_num_layers_to_build,
    get_transformer_layer_offset,
)
from flmgrow.trainer.megatron.live_masks import LiveMask, LiveMasks
from flmgrow.trainer.megatron.masked_modules import MaskedRowParallelLinear, scaled_branch
from flmgrow.trainer.megatron.norms import MaskedLayerNorm, MaskedRMSNorm, PlainNorm

MASKED_NORMS = {"layernorm": MaskedLayerNorm, "rmsnorm": MaskedRMSNorm}


def block_spec(
    config: ModelConfig, masks: LiveMasks, transformer_config: Any, chunk: int | None
) -> TransformerBlockSubmodules:
    """Return the modules of a pipeline chunk of this rank (``chunk`` is None if it has one)."""
    first = get_transformer_layer_offset(transformer_config, chunk)
    count = get_num_layers_to_build(transformer_config, chunk)
    norm = transformer_config.normalization
    return TransformerBlockSubmodules(
        layer_specs=[_layer_spec(config, masks, norm, first + layer) for layer in range(count)],
        layer_norm=_norm(config, masks),
    )


def _layer_spec(config: ModelConfig, masks: LiveMasks, norm: str, layer: int) -> Any:
    """Return the modules of a layer, counted from 0 through the whole model."""
    spec = get_gpt_layer_local_spec(qk_layernorm=config.qk_norm, normalization=norm)
    places = spec.submodules
    attention = places.self_attention
    if config.positions == "xpos":
        attention.module, attention.params["model"] = XposSelfAttention, config
    damped = config.multipliers.attention_by_inverse_layer
    attention.submodules.core_attention = DepthScaledAttention if damped else FusedAttention
    places.input_layernorm = places.pre_mlp_layernorm = _norm(config, masks)
    if config.qk_norm:
        attention.submodules.q_layernorm = attention.submodules.k_layernorm = PlainNorm
    if mask := masks.of(Dimension.HEADS):
        attention.submodules.linear_proj = _with_mask(MaskedRowParallelLinear, mask)
    if mask := masks.of(Dimension.FFN):
        _ffn_places(places.mlp).linear_fc2 = _with_mask(MaskedRowParallelLinear, mask)
    mask = masks.of(Dimension.DEPTH)
    gate = mask if mask and mask.is_fresh(layer) else None
    if gate or config.multipliers.residual != 1.0:
        add = scaled_branch(config.multipliers.residual, gate)
        places.self_attn_bda = places.mlp_bda = add
    return spec


def _norm(config: ModelConfig, masks: LiveMasks) -> Any:
    """Return the norm over hidden channels."""
    mask = masks.of(Dimension.WIDTH)
    return _with_mask(MASKED_NORMS[config.norm], mask) if mask else PlainNorm


def _with_mask(module: type, mask: LiveMask) -> Any:
    return ModuleSpec(module=module, params={"mask": mask})


def _ffn_places(mlp: Any) -> Any:
    # A ModuleSpec in megatron-core 0.16, a partial function in 0.19.
    return mlp.submodules if isinstance(mlp, ModuleSpec) else mlp.keywords["submodules"]
