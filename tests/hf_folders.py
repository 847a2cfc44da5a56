"""Hugging Face folders written by hand, so that they can be wrong in any way."""

import json
import struct
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]
Header = dict[str, Any]

CONFIG: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"], "model_type": "llama", "vocab_size": 24,
    "hidden_size": 8, "intermediate_size": 12, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "hidden_act": "silu", "max_position_embeddings": 32,
    "rms_norm_eps": 1e-5, "rope_theta": 10000.0, "tie_word_embeddings": False,
    "torch_dtype": "float32",
}  # fmt: skip

_KINDS = {"float64": "F64", "float32": "F32", "float16": "F16", "bfloat16": "BF16", "uint8": "U8"}


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
