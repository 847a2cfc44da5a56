"""Hugging Face folders written by hand, so that they can be wrong in any way.

With the fields of ``config.json`` of several families, and a model that each family can say.
"""

import json
import struct
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from flmgrow.model.arrays import Array
from flmgrow.model.config import LayerKind, ModelConfig, Multipliers, RotarySettings

Header = dict[str, Any]

CONFIG: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"], "model_type": "llama", "vocab_size": 24,
    "hidden_size": 8, "intermediate_size": 12, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "hidden_act": "silu", "max_position_embeddings": 32,
    "rms_norm_eps": 1e-5, "rope_theta": 10000.0, "tie_word_embeddings": False,
    "torch_dtype": "float32",
}  # fmt: skip

GPT2: dict[str, object] = {
    "model_type": "gpt2", "n_embd": 8, "n_layer": 2, "n_head": 2, "vocab_size": 9,
    "n_positions": 16, "activation_function": "gelu_new", "n_ctx": 16, "summary_type": "cls_index",
    "task_specific_params": {"text-generation": {"do_sample": True}}, "resid_pdrop": 0.1,
}  # fmt: skip
NEOX: dict[str, object] = {
    "model_type": "gpt_neox", "hidden_size": 8, "num_hidden_layers": 2, "num_attention_heads": 2,
    "intermediate_size": 16, "vocab_size": 9, "max_position_embeddings": 16, "hidden_act": "gelu",
    "use_parallel_residual": False, "rotary_pct": 0.25, "rotary_emb_base": 10000,
}  # fmt: skip
FLM = {  # of the published fields, those that describe FLM-101B; sizes are tiny
    "model_type": "flm", "n_embd": 16, "n_layer": 2, "n_head": 4, "n_inner": 64,
    "n_positions": 2048, "vocab_size": 24, "activation_function": "gelu_fast",
    "layer_norm_epsilon": 1e-5, "relative_encoding": "rotary", "rotary_theta": 10000,
    "rotary_use_xpos": True, "rotary_xpos_scale_base": 512, "scale_attn_weights": True,
    "scale_attn_by_inverse_layer_idx": True, "reorder_and_upcast_attn": True, "use_mup": True,
    "mup_base_width": 4, "mup_scale_factor": 4.0, "input_mult": 1.0, "output_mult": 2.0,
    "resid_pdrop": 0.1, "embd_pdrop": 0.1, "attn_pdrop": 0.1, "bos_token_id": 23,
}  # fmt: skip

_BASE: dict[str, Any] = {
    "layers": 2, "hidden": 16, "ffn": 20, "kv_groups": 4, "queries_per_group": 1, "head_dim": 4,
    "vocab": 24, "max_positions": 32,
}  # fmt: skip
_LLAMA: dict[str, Any] = {
    **_BASE, "norm": "rmsnorm", "activation": "swiglu", "linear_bias": False, "qkv_bias": False,
}  # fmt: skip
MODELS: dict[str, ModelConfig] = {
    "llama": ModelConfig(**{**_LLAMA, "kv_groups": 2, "queries_per_group": 2, "tied": False}),
    "qwen2": ModelConfig(**{**_LLAMA, "qkv_bias": True}),
    "qwen3": ModelConfig(**{**_LLAMA, "qk_norm": True, "head_dim": 8}),
    "granite": ModelConfig(
        **{**_LLAMA, "kv_groups": 2, "queries_per_group": 2},
        multipliers=Multipliers(
            embedding=2.5, output=1.7, mup_base_width=8, attention=0.2, residual=0.22
        ),
    ),
    "gpt2": ModelConfig(**_BASE, positions="learned", activation="gelu_tanh"),
    "gpt_neox": ModelConfig(**_BASE, tied=False, rotary=RotarySettings(percent=0.5)),
    "flm": ModelConfig(
        **_BASE, positions="xpos", rotary=RotarySettings(xpos_scale_base=16.0, xpos_centre=4),
        multipliers=Multipliers(
            embedding=2.5, output=1.7, mup_base_width=8, attention_by_inverse_layer=True
        ),
    ),
}  # fmt: skip
MODELS |= {
    "arcee": ModelConfig(
        **{**_LLAMA, "kv_groups": 2, "queries_per_group": 2, "activation": "squared_relu"}
    ),
    "nemotron": ModelConfig(
        **_BASE, zero_centred_gain=True, activation="squared_relu", linear_bias=False,
        qkv_bias=False, tied=False, rotary=RotarySettings(percent=0.5),
    ),
    "stablelm": ModelConfig(
        **_BASE, activation="swiglu", linear_bias=False, tied=False,
        rotary=RotarySettings(percent=0.5),
    ),
    "phi3": ModelConfig(**_LLAMA, rotary=RotarySettings(percent=0.5)),
    "gpt_bigcode": ModelConfig(
        **{**_BASE, "kv_groups": 1, "queries_per_group": 4}, positions="learned",
        activation="gelu_tanh",
    ),
}  # fmt: skip
MODELS |= {
    "starcoder2": ModelConfig(
        **{**_BASE, "kv_groups": 2, "queries_per_group": 2}, activation="gelu_tanh",
    ),
}  # fmt: skip
_GEMMA: dict[str, Any] = {
    **_LLAMA, "kv_groups": 2, "queries_per_group": 2, "zero_centred_gain": True,
    "activation": "geglu_tanh", "multipliers": Multipliers(embedding_by_width=True),
}  # fmt: skip
_LOCAL = LayerKind(5, rotary=RotarySettings(base=100.0))
BEYOND: dict[str, ModelConfig] = {
    "olmo2": ModelConfig(**_LLAMA, norm_places="after", qk_norm=True, qk_norm_of_all=True),
    "gemma": ModelConfig(**_GEMMA),
    "gemma2": ModelConfig(
        **_GEMMA, norm_places="around", score_cap=50.0, logit_cap=30.0,
        layer_kinds=(LayerKind(5), LayerKind()),
    ),
    "gemma3_text": ModelConfig(
        **_GEMMA, norm_places="around", qk_norm=True, layer_kinds=(_LOCAL, LayerKind()),
        rotary=RotarySettings(base=1e6, interpolation=8.0),
    ),
}  # fmt: skip
"""Those that megatron-core has no block for."""

EVERY = {**MODELS, **BEYOND}
ALIKE = {"mistral": "llama", "smollm3": "llama", "seed_oss": "qwen2"}
"""Families that say nothing of these that an earlier one could not: that one is taken."""

OWN_HEADS = ("gpt2", "gpt_neox", "flm", "stablelm", "gpt_bigcode")
"""Families whose models are as wide as their heads together, or have a group for each."""

_KINDS = {"float64": "F64", "float32": "F32", "float16": "F16", "bfloat16": "BF16", "uint8": "U8"}


def fields(**changed: object) -> dict[str, object]:
    """CONFIG with some fields changed or added."""
    return {**CONFIG, **changed}


def llama_arrays(dtype: str = "float32") -> dict[str, Array]:
    """The tensors of the model that CONFIG describes, drawn."""
    generator = np.random.default_rng(0)
    shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (24, 8)}
    for layer in range(2):
        shapes |= {
            f"model.layers.{layer}.{name}.weight": shape
            for name, shape in {
                "input_layernorm": (8,), "self_attn.q_proj": (8, 8), "self_attn.k_proj": (4, 8),
                "self_attn.v_proj": (4, 8), "self_attn.o_proj": (8, 8),
                "post_attention_layernorm": (8,), "mlp.gate_proj": (12, 8), "mlp.up_proj": (12, 8),
                "mlp.down_proj": (8, 12),
            }.items()
        }  # fmt: skip
    shapes |= {"model.norm.weight": (8,), "lm_head.weight": (24, 8)}
    kind = ml_dtypes.bfloat16 if dtype == "bfloat16" else np.dtype(dtype)
    return {name: generator.standard_normal(shape).astype(kind) for name, shape in shapes.items()}


def entry(array: Array, begin: int) -> Header:
    """The header's entry of an array whose bytes begin there."""
    return {
        "dtype": _KINDS[str(array.dtype)],
        "shape": list(array.shape),
        "data_offsets": [begin, begin + array.nbytes],
    }


def header_of(arrays: Mapping[str, Array]) -> Header:
    header: Header = {"__metadata__": {"format": "pt"}}
    begin = 0
    for name, array in arrays.items():
        header[name] = entry(array, begin)
        begin += array.nbytes
    return header


def as_file(header: Header | bytes, data: bytes = b"", length: int | None = None) -> bytes:
    """A file of this header (or these bytes in its place) and data."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + data


def write_safetensors(path: Path, arrays: Mapping[str, Array]) -> None:
    data = b"".join(array.tobytes() for array in arrays.values())
    path.write_bytes(as_file(header_of(arrays), data))


def make_folder(
    path: Path,
    config: Mapping[str, object] | None = None,
    arrays: Mapping[str, Array] | None = None,
    shards: int = 1,
) -> Path:
    """Write a folder, whole and right unless ``config`` or ``arrays`` are not."""
    path.mkdir()
    arrays = llama_arrays() if arrays is None else arrays
    (path / "config.json").write_text(json.dumps(CONFIG if config is None else dict(config)))
    if shards == 1:
        write_safetensors(path / "model.safetensors", arrays)
        return path
    names = list(arrays)
    placed: dict[str, str] = {}
    for number in range(shards):
        own: Sequence[str] = names[number::shards]
        name = f"model-{number + 1:05d}-of-{shards:05d}.safetensors"
        write_safetensors(path / name, {key: arrays[key] for key in own})
        placed |= dict.fromkeys(own, name)
    total = sum(array.nbytes for array in arrays.values())
    index = {"metadata": {"total_size": total}, "weight_map": placed}
    (path / "model.safetensors.index.json").write_text(json.dumps(index))
    return path


def with_files(folder: Path, *names: str) -> Path:
    """Lay files into a folder, each holding its own name."""
    for name in names:
        (folder / name).write_bytes(name.encode())
    return folder
