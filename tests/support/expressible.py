"""Random models that a family of transformers can say, whatever it can."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from hf_folders import ALIKE, EVERY
from hypothesis import strategies as st
from hypothesis.strategies import DrawFn, SearchStrategy

from flmgrow.formats.huggingface.families import FAMILIES
from flmgrow.formats.huggingface.fields.model_rows import ACTIVATIONS, GATED_ACTIVATIONS
from flmgrow.formats.huggingface.fields.rotary_rows import KINDS
from flmgrow.model.config import LayerKind, ModelConfig, Multipliers, Residual, RotarySettings
from flmgrow.model.rotary import LongRope, Yarn


@st.composite
def flm(draw: DrawFn, config: ModelConfig) -> ModelConfig:
    """A model of these sizes, and with any of FLM's constants."""
    number = st.floats(1e-3, 1e3)
    xpos = draw(st.booleans())
    return replace(
        config,
        positions="xpos" if xpos else "rope",
        rotary=RotarySettings(
            base=config.rotary.base,
            interleaved=draw(st.booleans()),
            xpos_scale_base=draw(number) if xpos else 512.0,
            xpos_centre=draw(st.integers(0, 99)) if xpos else 0,
        ),
        multipliers=Multipliers(
            embedding=draw(st.sampled_from([1.0, 2.5])),
            output=draw(st.one_of(st.just(1.0), number)),
            mup_base_width=draw(st.one_of(st.none(), st.integers(1, 99))),
            attention=draw(st.sampled_from([None, 1.0])),
            attention_by_inverse_layer=draw(st.booleans()),
        ),
    )


@st.composite
def granite(draw: DrawFn, config: ModelConfig) -> ModelConfig:
    """A model of these sizes with any multipliers; most outputs are the quotient by no number."""
    number = st.floats(1e-3, 1e3)
    return replace(
        config,
        multipliers=Multipliers(
            embedding=draw(number),
            output=draw(number),
            mup_base_width=draw(st.one_of(st.none(), st.integers(1, 99))),
            attention=draw(st.one_of(st.none(), number)),
            residual=draw(number),
        ),
    )


@st.composite
def biases(draw: DrawFn, config: ModelConfig) -> ModelConfig:
    """A model with a switch for attention's biases, and one for the FFN's."""
    attention = draw(st.booleans())
    return replace(config, qkv_bias=attention, out_bias=attention, linear_bias=draw(st.booleans()))


@st.composite
def neox(draw: DrawFn, config: ModelConfig) -> ModelConfig:
    """A model without biases in attention, or with them; its branches in either order."""
    attention = draw(st.booleans())
    residual: Residual = draw(st.sampled_from(["sequential", "parallel"]))
    return replace(config, qkv_bias=attention, out_bias=attention, residual=residual)


@st.composite
def seed_oss(draw: DrawFn, config: ModelConfig) -> ModelConfig:
    """A model with biases anywhere."""
    qkv, out, ffn = (draw(st.booleans()) for _ in range(3))
    return replace(config, qkv_bias=qkv, out_bias=out, linear_bias=ffn)


@st.composite
def stablelm(draw: DrawFn, config: ModelConfig) -> ModelConfig:
    residual: Residual = draw(st.sampled_from(["sequential", "parallel_one_norm"]))
    return replace(config, qkv_bias=draw(st.booleans()), residual=residual)


@st.composite
def smollm3(draw: DrawFn, config: ModelConfig) -> ModelConfig:
    """A model of which any layers rotate."""
    count = config.layers
    rotating = draw(st.lists(st.booleans(), min_size=count, max_size=count))
    return replace(config, layer_kinds=tuple(LayerKind(rotates=each) for each in rotating))


@st.composite
def windowed(draw: DrawFn, config: ModelConfig) -> ModelConfig:
    """A model whose layers share a window, shorter than its positions, or have none."""
    window = draw(st.none() | st.integers(1, config.max_positions))
    if window is None or window >= config.max_positions:
        return config
    return replace(config, layer_kinds=(LayerKind(window),) * config.layers)


@st.composite
def layered(draw: DrawFn, config: ModelConfig, by_base: bool = False) -> ModelConfig:
    """A model of which any layers have the one window there is; and a rotary base, ``by_base``."""
    window = draw(st.none() | st.integers(1, config.max_positions))
    window = None if window == config.max_positions else window
    rotary = RotarySettings(base=draw(st.floats(1.1, 1e7))) if by_base else None
    count, kinds = config.layers, [config.kind(layer) for layer in range(config.layers)]
    slides = draw(st.lists(st.booleans(), min_size=count, max_size=count))
    return replace(
        config,
        layer_kinds=tuple(
            replace(kind, window=window, rotary=rotary) if slide else kind
            for kind, slide in zip(kinds, slides, strict=True)
        ),
    )


@st.composite
def attention_biases(draw: DrawFn, config: ModelConfig) -> ModelConfig:
    biased = draw(st.booleans())
    return replace(config, qkv_bias=biased, out_bias=biased)


@st.composite
def gemma2(draw: DrawFn, config: ModelConfig) -> ModelConfig:
    """A model with any caps, and any number under the root of what scores are multiplied by."""
    scalar = draw(st.none() | st.integers(1, 10**6))
    multipliers = replace(config.multipliers, attention=scalar and scalar**-0.5)
    return replace(
        config,
        score_cap=draw(st.none() | st.floats(0.1, 99)),
        logit_cap=draw(st.none() | st.floats(0.1, 99)),
        activation=draw(st.sampled_from([*GATED_ACTIVATIONS.values()])),
        multipliers=multipliers,
    )


@st.composite
def gemma3(draw: DrawFn, config: ModelConfig) -> ModelConfig:
    """A model without a cap of scores, whose layers that attend to all may be interpolated."""
    interpolation = draw(st.sampled_from([None, 8.0]))
    rotary = replace(config.rotary, interpolation=interpolation)
    return draw(layered(replace(config, rotary=rotary, score_cap=None), by_base=True))


@st.composite
def all_biases(draw: DrawFn, config: ModelConfig) -> ModelConfig:
    biased = draw(st.booleans())
    return replace(config, linear_bias=biased, qkv_bias=biased)


@st.composite
def ungated(draw: DrawFn, config: ModelConfig) -> ModelConfig:
    """A model with any activation that has no gate."""
    return replace(config, activation=draw(st.sampled_from([*ACTIVATIONS.values()])))


@st.composite
def scaled(draw: DrawFn, config: ModelConfig) -> ModelConfig:
    """A model whose scores are scaled or not."""
    return replace(config, multipliers=Multipliers(attention=draw(st.sampled_from([None, 1.0]))))


@st.composite
def by_layer(draw: DrawFn, config: ModelConfig) -> ModelConfig:
    scores = replace(config.multipliers, attention_by_inverse_layer=draw(st.booleans()))
    return replace(config, multipliers=scores)


PARTS: dict[str, tuple[Callable[..., SearchStrategy[ModelConfig]], ...]] = {
    "llama": (biases,), "granite": (biases, granite), "arcee": (biases, ungated),
    "nemotron": (biases, ungated), "seed_oss": (seed_oss,), "stablelm": (stablelm,),
    "gpt2": (ungated, scaled, by_layer), "gpt_bigcode": (ungated, scaled),
    "gpt_neox": (neox, ungated), "flm": (ungated, flm), "smollm3": (biases, smollm3, layered),
    "qwen2": (layered,), "qwen3": (layered,), "olmo2": (attention_biases,),
    "gemma": (attention_biases,), "gemma2": (attention_biases, gemma2, layered),
    "gemma3_text": (attention_biases, gemma2, gemma3),
    "starcoder2": (ungated, windowed, all_biases), "mistral": (windowed,), "phi3": (windowed,),
}  # fmt: skip
"""What models of a family may differ in, beside sizes."""

_OWN = st.tuples(st.integers(1, 4), st.just(1))
HEADS = {
    "gpt2": _OWN, "gpt_neox": _OWN, "flm": _OWN,
    "gpt_bigcode": _OWN | st.tuples(st.just(1), st.integers(1, 4)),
}  # fmt: skip
"""The groups, and heads in each, of families that have not all."""

SCALINGS: list[dict[str, Any]] = [
    {"interpolation": 3.0},
    {"scaling_factor": 8.0},
    {"scaling_factor": 3.0, "scaling_slow": 2.0, "scaling_fast": 5.5, "scaling_context": 77},
    {"yarn": Yarn(factor=4.0, context=16, attention=1.5)},
    {"yarn": Yarn(factor=0.5, context=7, fast=9.5, slow=0.5, truncated=False)},
]
PARTLY = ("gpt_neox", "nemotron", "stablelm", "phi3")
AS_WIDE_AS_HEADS = ("gpt2", "gpt_neox", "stablelm", "gpt_bigcode")


@st.composite
def expressible(draw: DrawFn) -> tuple[str, ModelConfig]:
    """A family, and any model that it can say."""
    name = draw(st.sampled_from(list(FAMILIES)))
    groups, queries = draw(HEADS.get(name, st.tuples(st.integers(1, 4), st.integers(1, 3))))
    size = draw(st.sampled_from([4, 8]))
    share = draw(st.sampled_from([0.25, 0.5])) if name in PARTLY else 1.0
    scalings = [{}, *SCALINGS] if name not in KINDS else [{}]
    rotary = RotarySettings(
        base=draw(st.floats(1.1, 1e7)), percent=share, **draw(st.sampled_from(scalings))
    )
    if name == "phi3" and draw(st.booleans()):
        pairs = st.lists(
            st.floats(0.1, 99), min_size=rotary.pairs(size), max_size=rotary.pairs(size)
        ).map(tuple)
        longrope = LongRope(draw(pairs), draw(pairs), draw(st.integers(1, 99)), 1.2)
        rotary = replace(rotary, longrope=longrope)
    layers = draw(st.integers(1, 5))
    heads = groups * queries
    wide = name in AS_WIDE_AS_HEADS or rotary.longrope is not None
    hidden = heads * (size if wide else draw(st.integers(1, 9)))
    config = replace(
        EVERY[ALIKE.get(name, name)],
        layers=layers, layer_kinds=(), hidden=hidden, ffn=draw(st.integers(1, 50)),
        kv_groups=groups, queries_per_group=queries, head_dim=size,
        vocab=draw(st.integers(1, 99)), max_positions=draw(st.integers(1, 99)),
        norm_eps=draw(st.floats(0, 1)), tied=draw(st.booleans()), rotary=rotary,
    )  # fmt: skip
    for part in PARTS.get(name, ()):
        config = draw(part(config))
    return name, config
