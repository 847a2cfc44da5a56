"""Megatron-Bridge's ``run_config.yaml`` (and NeMo's ``model.yaml``), in Megatron-LM's terms.

They hold the fields of megatron-core's ``TransformerConfig`` and ``GPTModel``, some under other
names than Megatron-LM's arguments. What a field names is translated; what is not there is left to
the checkpoint's arrays, save for numbers that no array shows: those are megatron-core's defaults,
and that is told.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from flmgrow.errors import BadCheckpointError
from flmgrow.formats.megatron.arguments import model_rows as rows
from flmgrow.formats.megatron.arguments.classes import refuse_unknown
from flmgrow.formats.megatron.arguments.kind_rows import KIND_ROWS
from flmgrow.formats.megatron.arguments.mup_rows import NATIVE_ROWS
from flmgrow.formats.megatron.arguments.names import FEATURES
from flmgrow.formats.megatron.arguments.row import ModelArgument
from flmgrow.formats.megatron.arguments.run_rows import EXPERTS, SEQUENCE_LENGTH
from flmgrow.formats.megatron.arguments.vocabulary_rows import MULTIPLE, VOCAB
from flmgrow.text import Found, Text

_SAME: tuple[ModelArgument[Any], ...] = (
    rows.LAYERS, rows.HIDDEN, rows.FFN, rows.HEADS, rows.GROUPS, rows.HEAD_DIM, rows.NORM,
    rows.LINEAR_BIAS, rows.QKV_BIAS, rows.QK_NORM, rows.POSITIONS, rows.ROTARY_BASE,
    rows.ROTARY_PERCENT, rows.INTERLEAVED, rows.SOFTMAX_SCALE, VOCAB, MULTIPLE,
    rows.SCALING_FACTOR, SEQUENCE_LENGTH, rows.MAX_POSITIONS, *KIND_ROWS, *NATIVE_ROWS,
)  # fmt: skip
_RENAMED = {
    "layernorm_epsilon": rows.NORM_EPS.name,
    "layernorm_zero_centered_gamma": rows.ZERO_CENTRED.name,
    "seq_len_interpolation_factor": rows.INTERPOLATION.name,
    "rope_scaling": rows.USE_SCALING.name,
    "num_moe_experts": EXPERTS.name,
}
_MEANT = {**{row.name: row.name for row in _SAME}, **{n: n for n in FEATURES}, **_RENAMED}
"""The argument that a field means."""

_DEFAULTS = {
    rows.NORM_EPS.name: 1e-5,
    rows.ROTARY_BASE.name: 10000,
    rows.ROTARY_PERCENT.name: 1.0,
    rows.MAX_POSITIONS.name: 1024,
}
"""megatron-core's and Megatron-Bridge's own, of what no array shows."""

_TANH = ("fast_gelu", "gelu_pytorch_tanh")
_PLAIN = {"gelu": "gelu", "squared_relu": "squared_relu", **dict.fromkeys(_TANH, "gelu_tanh")}


def read_run_config(path: Path) -> tuple[dict[str, object], list[str]]:
    """Return the arguments that a file means, and what is to be told of them.

    Raises:
        UsageError: For no YAML.
        BadCheckpointError: For a model that flmgrow does not support.
    """
    from flmgrow.storage.strict_yaml import read_yaml  # most commands read no such file

    content = read_yaml(path)
    parts = content if isinstance(content, dict) else {}
    fields = next((parts[n] for n in ("model", "config") if isinstance(parts.get(n), dict)), parts)
    if not rows.LAYERS.get(fields):
        raise BadCheckpointError(
            f"describes no model: found no {rows.LAYERS.name}",
            "give Megatron-Bridge's run_config.yaml, or a config.json or checkpoint folder",
            where=path,
        )
    own: dict[str, object] = {
        argument: fields[name] for name, argument in _MEANT.items() if fields.get(name) is not None
    }
    refuse_unknown({n: value for n, value in own.items() if n in FEATURES}, str(path))
    notes: list[str] = []
    if fields.get("share_embeddings_and_output_weights") is not None:
        shared = fields["share_embeddings_and_output_weights"]
        own[rows.UNTIED.name] = not shared
    own |= _activation(fields, path, notes)
    heads = rows.HEADS.get(own)
    groups = own.setdefault(rows.GROUPS.name, heads)
    own[rows.GROUPED.name] = groups != heads
    own.setdefault(rows.MAX_POSITIONS.name, SEQUENCE_LENGTH.get(own))
    absent = {name: value for name, value in _DEFAULTS.items() if own.get(name) is None}
    if own.get(rows.POSITIONS.name, "rope") != "rope":
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
                Text("activation_func ", Found(name), " with a gate"),
                "flmgrow works on models with SwiGLU, GELU or squared ReLU",
                where=path,
                wanted="silu",
            )
        return {rows.SWIGLU.name: True}
    kind = _PLAIN.get(name or "gelu")
    if kind is None:
        raise BadCheckpointError(
            Text("activation_func ", Found(name)),
            "flmgrow works on models with SwiGLU, GELU or squared ReLU",
            where=path,
            wanted="gelu or squared_relu",
        )
    fused = fields.get("bias_activation_fusion") and fields.get(rows.LINEAR_BIAS.name, True)
    tanh = kind == "gelu_tanh" or (kind == "gelu" and bool(fused))
    return {
        rows.SWIGLU.name: False,
        rows.SQUARED_RELU.name: kind == "squared_relu",
        rows.TANH_GELU.name: tanh,
    }
