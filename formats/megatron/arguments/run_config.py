"""Megatron-Bridge's ``run_config.yaml`` (and NeMo's ``model.yaml``), in Megatron-LM's terms.

They hold the fields of megatron-core's ``TransformerConfig`` and ``GPTModel``, some under other
names than Megatron-LM's arguments. What a field names is translated; what is not there is left to
the checkpoint's arrays, save for numbers that no array shows: those are megatron-core's defaults,
and that is told.
"""

from collections.abc import Mapping
from pathlib import Path

from flmgrow.errors import BadCheckpointError
from flmgrow.formats.megatron.arguments.classes import refuse_unknown
from flmgrow.formats.megatron.arguments.names import FEATURES
from flmgrow.storage.strict_yaml import read_yaml

_SAME = """
    num_layers hidden_size ffn_hidden_size num_attention_heads num_query_groups kv_channels
    normalization add_bias_linear add_qkv_bias qk_layernorm position_embedding_type rotary_base
    rotary_percent rotary_interleaved softmax_scale vocab_size make_vocab_size_divisible_by
    rope_scaling_factor seq_length max_position_embeddings
    """.split()
_RENAMED = {
    "layernorm_epsilon": "norm_epsilon",
    "layernorm_zero_centered_gamma": "apply_layernorm_1p",
    "seq_len_interpolation_factor": "rotary_seq_len_interpolation_factor",
    "rope_scaling": "use_rope_scaling",
    "num_moe_experts": "num_experts",
}
_DEFAULTS = {
    "norm_epsilon": 1e-5,
    "rotary_base": 10000,
    "rotary_percent": 1.0,
    "max_position_embeddings": 1024,
}
"""megatron-core's and Megatron-Bridge's own, of what no array shows."""

_TANH = ("fast_gelu", "gelu_pytorch_tanh")
_PLAIN = {"gelu": "gelu", "squared_relu": "squared_relu", **dict.fromkeys(_TANH, "gelu_tanh")}


def read_run_config(path: Path) -> tuple[dict[str, object], list[str]]:
    """Return the arguments that a file means, and what is to be told of them.

    Raises UsageError for no YAML, BadCheckpointError for a model that flmgrow does not support.
    """
    content = read_yaml(path)
    parts = content if isinstance(content, dict) else {}
    fields = next((parts[n] for n in ("model", "config") if isinstance(parts.get(n), dict)), parts)
    if not fields.get("num_layers"):
        raise BadCheckpointError(
            f"{path}: describes no model: found no num_layers",
            "give Megatron-Bridge's run_config.yaml, or a config.json or checkpoint folder",
        )
    own: dict[str, object] = {
        argument: fields[name]
        for name, argument in {**{n: n for n in (*_SAME, *FEATURES)}, **_RENAMED}.items()
        if fields.get(name) is not None
    }
    refuse_unknown({n: value for n, value in own.items() if n in FEATURES}, str(path))
    notes: list[str] = []
    if fields.get("share_embeddings_and_output_weights") is not None:
        shared = fields["share_embeddings_and_output_weights"]
        own["untie_embeddings_and_output_weights"] = not shared
    own |= _activation(fields, path, notes)
    heads = own.get("num_attention_heads")
    groups = own.setdefault("num_query_groups", heads)
    own["group_query_attention"] = groups != heads
    own.setdefault("max_position_embeddings", own.get("seq_length"))
    absent = {name: value for name, value in _DEFAULTS.items() if own.get(name) is None}
    if own.get("position_embedding_type", "rope") != "rope":
        absent = {name: value for name, value in absent.items() if "rotary" not in name}
    if absent:
        listed = ", ".join(f"{name}={value}" for name, value in absent.items())
        notes.append(f"{path}: does not say all; taken as megatron-core has it: {listed}")
    known = {**own, **absent}
    return {n: v for n, v in known.items() if n not in FEATURES and v is not None}, notes


def _activation(fields: Mapping[str, object], path: Path, notes: list[str]) -> dict[str, object]:
    given, gated = fields.get("activation_func"), fields.get("gated_linear_unit")
    if isinstance(given, Mapping):  # {_target_: torch.nn.functional.silu, _call_: false}
        given = given.get("_target_")
    name = None if given is None else str(given).rpartition(".")[2].rstrip(">")
    if gated:
        if name is None:
            notes.append(f"{path}: names no activation_func; taken to be SwiGLU, as it is gated")
        elif name not in ("silu", "swiglu"):
            raise BadCheckpointError(
                f"{path}: activation_func {name} with a gate, wanted silu",
                "flmgrow works on models with SwiGLU, GELU or squared ReLU",
            )
        return {"swiglu": True}
    kind = _PLAIN.get(name or "gelu")
    if kind is None:
        raise BadCheckpointError(
            f"{path}: activation_func {name}, wanted gelu or squared_relu",
            "flmgrow works on models with SwiGLU, GELU or squared ReLU",
        )
    fused = fields.get("bias_activation_fusion") and fields.get("add_bias_linear", True)
    tanh = kind == "gelu_tanh" or (kind == "gelu" and bool(fused))
    return {"swiglu": False, "squared_relu": kind == "squared_relu", "openai_gelu": tanh}
