"""Random models, layouts and growths for property tests."""

from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.strategies import DrawFn, SearchStrategy
from pico import CONFIGS

from flmgrow.formats.layout.placements import Layout
from flmgrow.model.config import LayerKind, ModelConfig, Multipliers, Norm, RotarySettings
from flmgrow.model.masks import Dimension
from flmgrow.operators.choices import Method, NewLayers
from flmgrow.operators.target import Target
from flmgrow.surgery.layout_request import LayoutRequest

UNHURRIED: dict[str, Any] = {
    "deadline": None,
    "derandomize": True,
    "database": None,
    "suppress_health_check": list(HealthCheck),
    # Every example writes files: to make a failing one smaller takes minutes.
    "phases": (Phase.explicit, Phase.generate),
}


def examples(number: int) -> settings:
    """Return settings for a property that writes files: the same ``number`` examples each time."""
    return settings(max_examples=number, **UNHURRIED)


@st.composite
def kinds(draw: DrawFn, layers: int) -> tuple[LayerKind, ...]:
    """Layers of which any have one window, and any rotate; mostly all are alike."""
    if draw(st.sampled_from([True, True, False])):
        return ()
    window = draw(st.integers(1, 9))
    one = st.builds(LayerKind, st.sampled_from([None, window]), st.booleans())
    return tuple(draw(st.lists(one, min_size=layers, max_size=layers)))


@st.composite
def configs(draw: DrawFn) -> ModelConfig:
    """Models of odd sizes, down to one layer, one head and one channel group."""
    flag = st.booleans()
    norms: list[Norm] = ["rmsnorm", "layernorm"]
    norm = draw(st.sampled_from(norms))
    linear_bias = draw(flag)
    layers = draw(st.integers(1, 4))
    return ModelConfig(
        layers=layers,
        hidden=draw(st.sampled_from([5, 8, 12])),
        ffn=draw(st.sampled_from([3, 6, 8, 20])),
        kv_groups=draw(st.sampled_from([1, 2, 3, 4])),
        queries_per_group=draw(st.integers(1, 3)),
        head_dim=draw(st.sampled_from([2, 4, 6])),
        vocab=draw(st.sampled_from([17, 24, 51])),
        max_positions=16,
        norm=norm,
        norm_eps=draw(st.sampled_from([1e-5, 1e-2])),
        zero_centred_gain=draw(flag),
        activation=draw(st.sampled_from(["gelu", "gelu_tanh", "swiglu", "squared_relu"])),
        linear_bias=linear_bias,
        qkv_bias=linear_bias or draw(flag),
        qk_norm=draw(st.sampled_from([False, False, True])),
        tied=draw(flag),
        positions=draw(st.sampled_from(["learned", "rope", "xpos", "none"])),
        rotary=draw(
            st.sampled_from(
                [
                    RotarySettings(),
                    RotarySettings(interleaved=True, xpos_scale_base=16.0, xpos_centre=3),
                    RotarySettings(base=500.0, scaling_factor=8.0, interpolation=2.0),
                    RotarySettings(base=50.0, percent=0.3),
                    RotarySettings(percent=0.75, interleaved=True, xpos_scale_base=16.0),
                ]
            )
        ),
        layer_kinds=draw(kinds(layers)),
        multipliers=draw(
            st.sampled_from(
                [
                    Multipliers(),
                    Multipliers(embedding=3.0, output=0.7, mup_base_width=4, attention=0.3),
                    Multipliers(attention_by_inverse_layer=True, residual=0.4),
                ]
            )
        ),
    )


@st.composite
def decoders(draw: DrawFn) -> ModelConfig:
    """Any model that the reference forward computes, whether or not megatron-core has its parts."""
    config = draw(configs())
    local = st.sampled_from([None, None, RotarySettings(base=30.0, interpolation=2.0)])
    kind = st.builds(LayerKind, st.none() | st.integers(1, 9), st.booleans(), local)
    several = st.lists(kind, min_size=config.layers, max_size=config.layers)
    return replace(
        config,
        layer_kinds=tuple(draw(st.just([]) | several)),
        qkv_bias=draw(st.booleans()),
        out_bias=draw(st.booleans()),
        residual=draw(st.sampled_from(["sequential", "parallel", "parallel_one_norm"])),
        norm_places=draw(st.sampled_from(["before", "after", "around"])),
        qk_norm_of_all=draw(st.booleans()),
        activation=draw(st.sampled_from([config.activation, "geglu", "geglu_tanh"])),
        score_cap=draw(st.sampled_from([None, 0.7])),
        logit_cap=draw(st.sampled_from([None, 0.3])),
        multipliers=replace(config.multipliers, embedding_by_width=draw(st.booleans())),
    )


def any_config() -> SearchStrategy[ModelConfig]:
    """The named architectures and random ones."""
    return st.sampled_from(list(CONFIGS.values())) | configs()


@st.composite
def layouts(draw: DrawFn, layers: int, *split: int) -> Layout:
    """Layouts of ``layers`` layers, uneven and empty chunks too; TP divides each of ``split``."""
    tp = draw(st.sampled_from([t for t in (1, 2, 4) if not any(size % t for size in split)]))
    pp = draw(st.sampled_from([1, 2, 4]))
    vpp = draw(st.sampled_from([1, 2])) if pp > 1 else 1
    cuts = draw(
        st.lists(st.integers(0, layers), min_size=pp * vpp - 1, max_size=pp * vpp - 1).map(sorted)
    )
    bounds = [0, *cuts, layers]
    return Layout(tp, pp, vpp, tuple(b - a for a, b in pairwise(bounds)))


def layouts_of(config: ModelConfig) -> SearchStrategy[Layout]:
    """Layouts that the model fits."""
    return layouts(config.layers, config.kv_groups, config.ffn)


def as_request(layout: Layout) -> LayoutRequest:
    """Return the request for exactly this layout."""
    return LayoutRequest(layout.tp, layout.pp, layout.vpp, layout.chunk_layers)


@dataclass(frozen=True)
class Case:
    """A model in a layout, what it shall grow to, and the layout after that."""

    config: ModelConfig
    layout: Layout
    target: Target
    new_layout: Layout

    @property
    def refused(self) -> bool:
        """Whether no exact construction exists for this growth of the width."""
        config, new = self.config, self.target.hidden
        method = self.target.methods[Dimension.WIDTH]
        if new in (None, config.hidden):
            return False
        tied = config.tied and not self.target.untie
        return method == "zero" and config.norm == "layernorm" and tied


@st.composite
def placements_of_layers(draw: DrawFn, old: int, new: int) -> str:
    """Where fresh layers go."""
    named = draw(st.sampled_from(["end", "interleave", "pattern"]))
    if named != "pattern":
        return named
    extra = draw(st.lists(st.integers(0, old - 1), min_size=new - old, max_size=new - old))
    return ",".join(map(str, sorted([*range(old), *extra])))


@st.composite
def targets(draw: DrawFn, config: ModelConfig) -> Target:
    """Growths of any subset of the dimensions, each by a method of its own."""

    def grown(old: int, more: SearchStrategy[int]) -> int | None:
        return draw(st.none() | more.map(lambda extra: old + extra))

    groups = grown(config.kv_groups, st.sampled_from([0, 1, 2, 4])) or config.kv_groups
    queries = grown(config.queries_per_group, st.sampled_from([0, 1, 2]))
    layers = grown(config.layers, st.integers(0, 4))
    method = st.sampled_from([Method.MASK, Method.ZERO, Method.COPY])
    width = st.sampled_from([1, 3, config.hidden, config.hidden + 2, 2 * config.hidden])
    return Target(
        layers=layers,
        hidden=grown(config.hidden, width),
        ffn=grown(config.ffn, st.sampled_from([1, 4, config.ffn, 2 * config.ffn + 4])),
        heads=groups * (queries or config.queries_per_group),
        kv_groups=groups,
        vocab=grown(config.vocab, st.sampled_from([0, 1, 13])),
        methods={dimension: draw(method) for dimension in Dimension},
        depth_placement=draw(placements_of_layers(config.layers, layers or config.layers)),
        new_layers=draw(st.sampled_from([*NewLayers])),
        untie=config.tied and draw(st.booleans()),
        seed=draw(st.integers(0, 3)),
    )


@st.composite
def cases(draw: DrawFn, models: SearchStrategy[ModelConfig] | None = None) -> Case:
    """Any model, grown any way, between any two layouts."""
    config = draw(models or any_config())
    target = draw(targets(config))
    groups = target.kv_groups or config.kv_groups
    new = draw(layouts(target.layers or config.layers, groups, target.ffn or config.ffn))
    return Case(config, draw(layouts_of(config)), target, new)
