"""Where the causal language models of transformers keep each logical tensor: rows only.

One table per way of storing a block. Llama's serves all that only differ in the parts they have
(gates, biases, norms of queries and keys); Phi-3 fuses what Llama keeps apart, and
StarCoder 2 has other names in the FFN. GPT-2 stores its
matrices as (in, out), GPT-BigCode the same ones as (out, in). GPT-NeoX alternates query, key and
value head by head, as Megatron does.
"""

from flmgrow.formats.tables.row import Home, Row
from flmgrow.model.axes import Axis

_HEADS = (Axis.KV_GROUP, Axis.QUERY_PER_GROUP, Axis.HEAD_DIM)
_HIDDEN = (Axis.HIDDEN,)
_FFN = (Axis.FFN,)


def _norm(key: str, name: str, home: Home = Home.LAYER) -> tuple[Row, Row]:
    return (
        Row(f"{key}.weight", (f"{name}.gain",), home),
        Row(f"{key}.bias", (f"{name}.bias",), home),
    )


def _matrix(key: str, *parts: str, columns: tuple[Axis, ...]) -> Row:
    """A linear layer that never has a bias: (out, in)."""
    return Row(f"{key}.weight", parts, Home.LAYER, columns=columns)


def _linear(key: str, *parts: str, columns: tuple[Axis, ...]) -> tuple[Row, Row]:
    """A linear layer: (out, in), and its bias."""
    biases = tuple(f"{part}.bias" for part in parts)
    return _matrix(key, *parts, columns=columns), Row(f"{key}.bias", biases, Home.LAYER)


def _by_group(key: str, *parts: str) -> tuple[Row, Row]:
    """A linear layer whose parts alternate group by group, and its bias."""
    outer, biases = (Axis.KV_GROUP,), tuple(f"{part}.bias" for part in parts)
    return (
        Row(f"{key}.weight", parts, Home.LAYER, outer=outer, columns=_HIDDEN),
        Row(f"{key}.bias", biases, Home.LAYER, outer=outer),
    )


def _conv1d(key: str, *parts: str, inputs: tuple[Axis, ...]) -> tuple[Row, Row]:
    """GPT-2's linear layer: (in, out), and its bias."""
    biases = tuple(f"{part}.bias" for part in parts)
    return (
        Row(f"{key}.weight", parts, Home.LAYER, inputs=inputs),
        Row(f"{key}.bias", biases, Home.LAYER),
    )


def _tables(embedding: str, head: str) -> tuple[tuple[Row, ...], tuple[Row, ...]]:
    """The embedding table, and the head; a copy of the shared table may lie in the head's place."""
    return (
        (Row(embedding, ("embedding",), Home.FIRST, columns=_HIDDEN),),
        (
            Row(head, ("head",), Home.LAST, columns=_HIDDEN),
            Row(head, ("embedding",), Home.LAST_COPY, columns=_HIDDEN),
        ),
    )


_EMBEDDING, _HEAD = _tables("model.embed_tokens.weight", "lm_head.weight")
_LAYER = "model.layers.{layer}."


LLAMA: tuple[Row, ...] = (
    *_EMBEDDING,
    *_norm(_LAYER + "input_layernorm", "attention_norm"),
    *_linear(_LAYER + "self_attn.q_proj", "query", columns=_HIDDEN),
    *_linear(_LAYER + "self_attn.k_proj", "key", columns=_HIDDEN),
    *_linear(_LAYER + "self_attn.v_proj", "value", columns=_HIDDEN),
    *_norm(_LAYER + "self_attn.q_norm", "query_norm"),
    *_norm(_LAYER + "self_attn.k_norm", "key_norm"),
    *_linear(_LAYER + "self_attn.o_proj", "attention_out", columns=_HEADS),
    *_norm(_LAYER + "post_attention_layernorm", "ffn_norm"),
    *_linear(_LAYER + "mlp.gate_proj", "gate", columns=_HIDDEN),
    *_linear(_LAYER + "mlp.up_proj", "up", columns=_HIDDEN),
    *_linear(_LAYER + "mlp.down_proj", "down", columns=_FFN),
    *_norm("model.norm", "final_norm", Home.LAST),
    *_HEAD,
)
PHI3: tuple[Row, ...] = (
    *_EMBEDDING,
    *_norm(_LAYER + "input_layernorm", "attention_norm"),
    _matrix(_LAYER + "self_attn.qkv_proj", "query", "key", "value", columns=_HIDDEN),
    _matrix(_LAYER + "self_attn.o_proj", "attention_out", columns=_HEADS),
    *_norm(_LAYER + "post_attention_layernorm", "ffn_norm"),
    _matrix(_LAYER + "mlp.gate_up_proj", "gate", "up", columns=_HIDDEN),
    _matrix(_LAYER + "mlp.down_proj", "down", columns=_FFN),
    *_norm("model.norm", "final_norm", Home.LAST),
    *_HEAD,
)

STARCODER2: tuple[Row, ...] = (
    *_EMBEDDING,
    *_norm(_LAYER + "input_layernorm", "attention_norm"),
    *_linear(_LAYER + "self_attn.q_proj", "query", columns=_HIDDEN),
    *_linear(_LAYER + "self_attn.k_proj", "key", columns=_HIDDEN),
    *_linear(_LAYER + "self_attn.v_proj", "value", columns=_HIDDEN),
    *_linear(_LAYER + "self_attn.o_proj", "attention_out", columns=_HEADS),
    *_norm(_LAYER + "post_attention_layernorm", "ffn_norm"),
    *_linear(_LAYER + "mlp.c_fc", "up", columns=_HIDDEN),
    *_linear(_LAYER + "mlp.c_proj", "down", columns=_FFN),
    *_norm("model.norm", "final_norm", Home.LAST),
    *_HEAD,
)

NORMED_AFTER: tuple[Row, ...] = (
    *_EMBEDDING,
    *_norm(_LAYER + "input_layernorm", "attention_norm"),
    *_linear(_LAYER + "self_attn.q_proj", "query", columns=_HIDDEN),
    *_linear(_LAYER + "self_attn.k_proj", "key", columns=_HIDDEN),
    *_linear(_LAYER + "self_attn.v_proj", "value", columns=_HIDDEN),
    *_norm(_LAYER + "self_attn.q_norm", "query_norm"),
    *_norm(_LAYER + "self_attn.k_norm", "key_norm"),
    *_linear(_LAYER + "self_attn.o_proj", "attention_out", columns=_HEADS),
    *_norm(_LAYER + "post_attention_layernorm", "attention_post_norm"),
    *_norm(_LAYER + "pre_feedforward_layernorm", "ffn_norm"),
    _matrix(_LAYER + "mlp.gate_proj", "gate", columns=_HIDDEN),
    _matrix(_LAYER + "mlp.up_proj", "up", columns=_HIDDEN),
    _matrix(_LAYER + "mlp.down_proj", "down", columns=_FFN),
    *_norm(_LAYER + "post_feedforward_layernorm", "ffn_post_norm"),
    *_norm("model.norm", "final_norm", Home.LAST),
    *_HEAD,
)
"""OLMo 2, Gemma 2 and Gemma 3: the norm that Llama has in front of its FFN is attention's last."""

_EMBEDDING, _HEAD = _tables("transformer.wte.weight", "lm_head.weight")
_LAYER = "transformer.h.{layer}."


def _gpt2_block(
    qkv: tuple[Row, ...], out: tuple[Row, ...], inward: tuple[Row, ...], down: tuple[Row, ...]
) -> tuple[Row, ...]:
    return (
        *_EMBEDDING,
        Row("transformer.wpe.weight", ("position_embedding",), Home.FIRST, columns=_HIDDEN),
        *_norm(_LAYER + "ln_1", "attention_norm"),
        *qkv,
        *out,
        *_norm(_LAYER + "ln_2", "ffn_norm"),
        *inward,
        *down,
        *_norm("transformer.ln_f", "final_norm", Home.LAST),
        *_HEAD,
    )


GPT2: tuple[Row, ...] = _gpt2_block(
    _conv1d(_LAYER + "attn.c_attn", "query", "key", "value", inputs=_HIDDEN),
    _conv1d(_LAYER + "attn.c_proj", "attention_out", inputs=_HEADS),
    _conv1d(_LAYER + "mlp.c_fc", "up", inputs=_HIDDEN),
    _conv1d(_LAYER + "mlp.c_proj", "down", inputs=_FFN),
)
GPT_BIGCODE: tuple[Row, ...] = _gpt2_block(
    _by_group(_LAYER + "attn.c_attn", "query", "key", "value"),
    _linear(_LAYER + "attn.c_proj", "attention_out", columns=_HEADS),
    _linear(_LAYER + "mlp.c_fc", "up", columns=_HIDDEN),
    _linear(_LAYER + "mlp.c_proj", "down", columns=_FFN),
)
"""Its groups are as many as heads, or one: then group by group is all queries, the key, the value.
"""

_EMBEDDING, _HEAD = _tables("gpt_neox.embed_in.weight", "embed_out.weight")
_LAYER = "gpt_neox.layers.{layer}."
GPT_NEOX: tuple[Row, ...] = (
    *_EMBEDDING,
    *_norm(_LAYER + "input_layernorm", "attention_norm"),
    *_by_group(_LAYER + "attention.query_key_value", "query", "key", "value"),
    *_linear(_LAYER + "attention.dense", "attention_out", columns=_HEADS),
    *_norm(_LAYER + "post_attention_layernorm", "ffn_norm"),
    *_linear(_LAYER + "mlp.dense_h_to_4h", "up", columns=_HIDDEN),
    *_linear(_LAYER + "mlp.dense_4h_to_h", "down", columns=_FFN),
    *_norm("gpt_neox.final_layer_norm", "final_norm", Home.LAST),
    *_HEAD,
)
