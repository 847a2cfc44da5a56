"""Where megatron-core's GPT decoder keeps each logical tensor: rows only.

Two naming schemes exist: the local layer spec, and the Transformer Engine spec, which fuses each
norm into the linear layer behind it.
"""

from flmgrow.formats.tables.row import Home, Row
from flmgrow.model.axes import Axis

_LAYER = "decoder.layers.{layer}."
_ATTENTION = _LAYER + "self_attention."
_MLP = _LAYER + "mlp."
_HEADS = (Axis.KV_GROUP, Axis.QUERY_PER_GROUP, Axis.HEAD_DIM)


def _norm(key: str, name: str, home: Home, fused: str = "") -> tuple[Row, Row]:
    return (
        Row(f"{key}.weight", (f"{name}.gain",), home, fused_key=f"{fused}_weight" if fused else ""),
        Row(f"{key}.bias", (f"{name}.bias",), home, fused_key=f"{fused}_bias" if fused else ""),
    )


ROWS: tuple[Row, ...] = (
    Row(
        "embedding.word_embeddings.weight",
        ("embedding",),
        Home.FIRST,
        shard=Axis.VOCAB,
        columns=(Axis.HIDDEN,),
    ),
    Row(
        "embedding.position_embeddings.weight",
        ("position_embedding",),
        Home.FIRST,
        columns=(Axis.HIDDEN,),
    ),
    *_norm(
        _LAYER + "input_layernorm",
        "attention_norm",
        Home.LAYER,
        fused=_ATTENTION + "linear_qkv.layer_norm",
    ),
    Row(
        _ATTENTION + "linear_proj.weight",
        ("attention_out",),
        Home.LAYER,
        shard=Axis.KV_GROUP,
        columns=_HEADS,
    ),
    Row(_ATTENTION + "linear_proj.bias", ("attention_out.bias",), Home.LAYER),
    Row(
        _ATTENTION + "linear_qkv.weight",
        ("query", "key", "value"),
        Home.LAYER,
        shard=Axis.KV_GROUP,
        outer=(Axis.KV_GROUP,),
        columns=(Axis.HIDDEN,),
    ),
    Row(
        _ATTENTION + "linear_qkv.bias",
        ("query.bias", "key.bias", "value.bias"),
        Home.LAYER,
        shard=Axis.KV_GROUP,
        outer=(Axis.KV_GROUP,),
    ),
    *_norm(_ATTENTION + "q_layernorm", "query_norm", Home.LAYER),
    *_norm(_ATTENTION + "k_layernorm", "key_norm", Home.LAYER),
    *_norm(
        _LAYER + "pre_mlp_layernorm", "ffn_norm", Home.LAYER, fused=_MLP + "linear_fc1.layer_norm"
    ),
    Row(
        _MLP + "linear_fc1.weight",
        ("gate", "up"),
        Home.LAYER,
        shard=Axis.FFN,
        columns=(Axis.HIDDEN,),
    ),
    Row(_MLP + "linear_fc1.bias", ("gate.bias", "up.bias"), Home.LAYER, shard=Axis.FFN),
    Row(_MLP + "linear_fc2.weight", ("down",), Home.LAYER, shard=Axis.FFN, columns=(Axis.FFN,)),
    Row(_MLP + "linear_fc2.bias", ("down.bias",), Home.LAYER),
    *_norm("decoder.final_layernorm", "final_norm", Home.LAST),
    Row("output_layer.weight", ("head",), Home.LAST, shard=Axis.VOCAB, columns=(Axis.HIDDEN,)),
    Row(
        "output_layer.weight",
        ("embedding",),
        Home.LAST_COPY,
        shard=Axis.VOCAB,
        columns=(Axis.HIDDEN,),
    ),
)
"""Megatron-core 0.16, ``GPTModel.state_dict``; the fused names as in its Transformer Engine layer
spec.
"""
