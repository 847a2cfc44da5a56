"""The layer spec of a model for megatron-core, with masks where it has some.

A layer of megatron-core is put together from a spec: a table of modules, one for each place. This
file is the only one that says which places take another module than the stock one, and when. Where
nothing is masked and nothing is asked for that megatron-core lacks, the table is the stock one but
for kernels: attention and norms are torch's own, with the same parameters. With Transformer Engine
(:mod:`flmgrow.trainer.megatron.switches`) megatron-core's table for that stands in its place, for
models without masks: a norm is part of the projection behind it, and so are its parameters.
"""

from typing import Any

from flmgrow.model.config import ModelConfig
from flmgrow.model.masks import Dimension
from flmgrow.trainer.megatron.attention import (
    DepthScaledAttention,
    EngineAttention,
    FusedAttention,
    XposSelfAttention,
)
from flmgrow.trainer.megatron.core import (
    ModuleSpec,
    TENorm,
    TransformerBlockSubmodules,
    get_gpt_layer_local_spec,
    get_gpt_layer_with_transformer_engine_spec,
    get_num_layers_to_build,
    get_transformer_layer_offset,
)
from flmgrow.trainer.megatron.live_masks import LiveMask, LiveMasks
from flmgrow.trainer.megatron.masked_modules import MaskedRowParallelLinear, scaled_branch
from flmgrow.trainer.megatron.norms import MaskedLayerNorm, MaskedRMSNorm, PlainNorm
from flmgrow.trainer.megatron.switches import ENGINE

MASKED_NORMS = {"layernorm": MaskedLayerNorm, "rmsnorm": MaskedRMSNorm}


def block_spec(
    config: ModelConfig, masks: LiveMasks, transformer_config: Any, chunk: int | None
) -> TransformerBlockSubmodules:
    """Return the modules of a pipeline chunk of this rank (``chunk`` is None if it has one)."""
    first = get_transformer_layer_offset(transformer_config, chunk)
    count = get_num_layers_to_build(transformer_config, chunk)
    engine = transformer_config.transformer_impl == ENGINE
    norm = transformer_config.normalization

    def whole(layer: int) -> Any:
        stock = _engine_spec(config) if engine else _local_spec(config, masks, norm)
        return _layer_spec(stock, config, masks, first + layer)

    return TransformerBlockSubmodules(
        layer_specs=[whole(layer) for layer in range(count)],
        layer_norm=TENorm if engine else _norm(config, masks),
    )


def _engine_spec(config: ModelConfig) -> Any:
    """Return the modules of a layer by Transformer Engine."""
    spec = get_gpt_layer_with_transformer_engine_spec(qk_layernorm=config.qk_norm)
    spec.submodules.self_attention.submodules.core_attention = EngineAttention
    return spec


def _local_spec(config: ModelConfig, masks: LiveMasks, norm: str) -> Any:
    """Return the modules of a layer by torch, in which units may be masked."""
    spec = get_gpt_layer_local_spec(qk_layernorm=config.qk_norm, normalization=norm)
    places = spec.submodules
    attention = places.self_attention.submodules
    attention.core_attention = FusedAttention
    places.input_layernorm = places.pre_mlp_layernorm = _norm(config, masks)
    if config.qk_norm:
        attention.q_layernorm = attention.k_layernorm = PlainNorm
    if mask := masks.of(Dimension.HEADS):
        attention.linear_proj = _with_mask(MaskedRowParallelLinear, mask)
    if mask := masks.of(Dimension.FFN):
        _ffn_places(places.mlp).linear_fc2 = _with_mask(MaskedRowParallelLinear, mask)
    return spec


def _layer_spec(spec: Any, config: ModelConfig, masks: LiveMasks, layer: int) -> Any:
    """Return ``spec`` with what it lacks of a layer, counted from 0 through the whole model."""
    places = spec.submodules
    attention = places.self_attention
    if config.positions == "xpos":
        attention.module, attention.params["model"] = XposSelfAttention, config
    if config.multipliers.attention_by_inverse_layer:
        attention.submodules.core_attention = DepthScaledAttention
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
