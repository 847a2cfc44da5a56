"""Tiny models of every architecture: configurations, and weights made from them and a seed."""

from collections.abc import Iterator, Mapping
from types import MappingProxyType
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from flmgrow.model.config import LayerKind, ModelConfig, Multipliers, RotarySettings

Array = NDArray[np.float64]

_SIZES: dict[str, Any] = {
    "layers": 4, "hidden": 12, "ffn": 20, "kv_groups": 4, "queries_per_group": 1, "head_dim": 4,
    "vocab": 51, "max_positions": 16, "norm_eps": 1e-2,
}  # fmt: skip
_LLAMA = {"norm": "rmsnorm", "activation": "swiglu", "linear_bias": False, "qkv_bias": False}

CONFIGS: Mapping[str, ModelConfig] = MappingProxyType(
    {
        "llama": ModelConfig(**{**_SIZES, **_LLAMA, "queries_per_group": 2}),
        "tele": ModelConfig(**{**_SIZES, **_LLAMA, "tied": False}),
        "flm": ModelConfig(
            **_SIZES,
            positions="xpos",
            rotary=RotarySettings(xpos_scale_base=16.0, xpos_centre=4),
            multipliers=Multipliers(
                embedding=2.5, output=1.7, mup_base_width=8, attention_by_inverse_layer=True
            ),
        ),
        "gpt": ModelConfig(**_SIZES, positions="learned", tied=False),
        "qwen": ModelConfig(**{**_SIZES, **_LLAMA, "qkv_bias": True, "queries_per_group": 3}),
        "qk": ModelConfig(**{**_SIZES, **_LLAMA, "qk_norm": True, "tied": False}),
        "nemotron": ModelConfig(
            **{
                **_SIZES,
                "kv_groups": 1,
                "queries_per_group": 4,
                "zero_centred_gain": True,
                "activation": "squared_relu",
                "linear_bias": False,
                "qkv_bias": False,
                "rotary": RotarySettings(percent=0.5),
                "tied": False,
            }
        ),
    }
)
"""The architectures people have, tiny; the last is multi-query and fits no tensor parallelism."""

_GEMMA = {
    **_SIZES, "norm": "rmsnorm", "zero_centred_gain": True, "activation": "geglu_tanh",
    "linear_bias": False, "qkv_bias": False, "queries_per_group": 2,
    "multipliers": Multipliers(embedding_by_width=True, attention=0.3),
}  # fmt: skip
_LOCAL = LayerKind(5, rotary=RotarySettings(base=100.0))
BEYOND: Mapping[str, ModelConfig] = MappingProxyType(
    {
        "olmo2": ModelConfig(
            **{**_SIZES, **_LLAMA, "queries_per_group": 2, "tied": False},
            norm_places="after", qk_norm=True, qk_norm_of_all=True,
        ),
        "gemma": ModelConfig(**_GEMMA),
        "gemma2": ModelConfig(
            **_GEMMA, norm_places="around", score_cap=2.0, logit_cap=1.5,
            layer_kinds=(LayerKind(5), LayerKind()) * 2,
        ),
        "gemma3": ModelConfig(
            **_GEMMA, norm_places="around", qk_norm=True,
            rotary=RotarySettings(base=1000.0, interpolation=8.0),
            layer_kinds=(_LOCAL, _LOCAL, _LOCAL, LayerKind()),
        ),
        "untied gemma": ModelConfig(**_GEMMA, tied=False),
    }
)  # fmt: skip
"""Those that megatron-core has no block for."""


def _shapes(config: ModelConfig) -> Iterator[tuple[str, str, tuple[int, ...]]]:
    """Every logical tensor: its name, what kind of values it has, its shape."""
    layers, hidden, ffn = config.layers, config.hidden, config.ffn
    heads = (config.kv_groups, config.queries_per_group, config.head_dim)
    groups = (config.kv_groups, config.head_dim)

    def norm(name: str, *shape: int) -> Iterator[tuple[str, str, tuple[int, ...]]]:
        yield f"{name}.gain", "gain", shape
        if config.norm == "layernorm":
            yield f"{name}.bias", "bias", shape

    yield "embedding", "table", (config.vocab, hidden)
    if config.positions == "learned":
        yield "position_embedding", "table", (config.max_positions, hidden)
    if config.norms_before:
        yield from norm("attention_norm", layers, hidden)
    for name, shape in (("query", heads), ("key", groups), ("value", groups)):
        yield name, "weight", (layers, *shape, hidden)
        if config.qkv_bias:
            yield f"{name}.bias", "bias", (layers, *shape)
    if config.qk_norm:
        all_heads = config.qk_norm_of_all
        yield from norm("query_norm", layers, *(heads if all_heads else heads[-1:]))
        yield from norm("key_norm", layers, *(groups if all_heads else groups[-1:]))
    yield "attention_out", "weight", (layers, hidden, *heads)
    if config.norms_after:
        yield from norm("attention_post_norm", layers, hidden)
        yield from norm("ffn_post_norm", layers, hidden)
    if config.norms_before and config.residual != "parallel_one_norm":
        yield from norm("ffn_norm", layers, hidden)
    for name in ("gate", "up") if config.gated else ("up",):
        yield name, "weight", (layers, ffn, hidden)
        if config.linear_bias:
            yield f"{name}.bias", "bias", (layers, ffn)
    yield "down", "weight", (layers, hidden, ffn)
    if config.attention_out_bias:
        yield "attention_out.bias", "bias", (layers, hidden)
    if config.linear_bias:
        yield "down.bias", "bias", (layers, hidden)
    yield from norm("final_norm", hidden)
    if not config.tied:
        yield "head", "table", (config.vocab, hidden)


def draw(seed: int, name: str, kind: str, shape: tuple[int, ...]) -> Array:
    """Values that matter: no gain is one, no bias zero, tables are so small that eps counts."""
    values = np.random.default_rng([seed, *name.encode()]).standard_normal(shape)
    return {
        "table": values * 0.1,
        "gain": 1 + values * 0.3,
        "bias": values * 0.2,
        "weight": values * 0.4,
    }[kind]


def _shift(config: ModelConfig, name: str) -> float:
    return 1.0 if config.zero_centred_gain and name.endswith("gain") else 0.0


def stored_weights(config: ModelConfig, seed: int = 0, dtype: str = "float64") -> dict[str, Tensor]:
    """Return every logical tensor in full, as stored (a zero-centred gain less one)."""
    return {
        name: torch.from_numpy(draw(seed, name, kind, shape) - _shift(config, name)).to(
            getattr(torch, dtype)
        )
        for name, kind, shape in _shapes(config)
    }


def skewed_weights(config: ModelConfig, seed: int = 0, dtype: str = "float64") -> dict[str, Tensor]:
    """Weights whose logits are all far below zero, as a trained model's may be: the head's rows
    have a direction in common, and the residual stream points the other way.
    """
    weights = stored_weights(config, seed, dtype)
    weights["final_norm.gain"][0] = -6.0 - _shift(config, "final_norm.gain")
    for name in ("embedding", "head"):
        if name in weights:
            weights[name][:, 0] = 2.0
    for name in ("attention_out", "down", "attention_out.bias", "down.bias"):
        if name in weights:
            weights[name][:, 0] = 0.0
    if config.norm == "layernorm":
        weights["final_norm.bias"][0] = -6.0
    return weights


def logical_weights(config: ModelConfig, seed: int = 0, dtype: str = "float64") -> dict[str, Array]:
    """Return every logical tensor in full, as float64 numbers that ``dtype`` can hold."""
    return {
        name: stored.double().numpy() + _shift(config, name)
        for name, stored in stored_weights(config, seed, dtype).items()
    }


class DictWeights:
    """Feeds the reference forward from whole logical tensors; matrices come in two parts."""

    def __init__(
        self, arrays: Mapping[str, Array | Tensor], dtype: torch.dtype = torch.float64
    ) -> None:
        self.tensors = {name: torch.as_tensor(array).to(dtype) for name, array in arrays.items()}

    def tensor(self, name: str, layer: int | None = None) -> Tensor:
        return self.tensors[name] if layer is None else self.tensors[name][layer]

    def rows(self, name: str, ids: Tensor) -> Tensor:
        return self.tensors[name][ids]

    def parts(
        self, name: str, layer: int | None = None, inputs: int = 1, stop: int | None = None
    ) -> Iterator[Tensor]:
        whole = self.tensor(name, layer)[:stop]
        rows = whole.flatten(-inputs).flatten(0, -2)
        yield rows[: len(rows) // 2]
        yield rows[len(rows) // 2 :]
