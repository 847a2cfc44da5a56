"""One description of a decoder, free of any file format, that is valid whenever it can be held.

Formats translate their own arguments to and from this (``formats/megatron/arguments/model.py``);
growth changes its sizes and the few values that must follow; the reference forward computes exactly
what it says. A field that changes the function and is not in here does not exist for flmgrow: the
formats must refuse it.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Literal, get_args

from flmgrow.errors import UsageError
from flmgrow.model.axes import Axis
from flmgrow.model.checks import check_finite, check_whole
from flmgrow.model.rotary import RotarySettings as RotarySettings
from flmgrow.model.rotary import without_scaling

Norm = Literal["layernorm", "rmsnorm"]
Activation = Literal["gelu", "gelu_tanh", "swiglu", "geglu", "geglu_tanh", "squared_relu"]
Positions = Literal["learned", "rope", "xpos", "none"]
Residual = Literal["sequential", "parallel", "parallel_one_norm"]
NormPlaces = Literal["before", "after", "around"]

_WORDS = {
    "norm": get_args(Norm),
    "activation": get_args(Activation),
    "positions": get_args(Positions),
    "residual": get_args(Residual),
    "norm_places": get_args(NormPlaces),
}
_GATED = ("swiglu", "geglu", "geglu_tanh")


@dataclass(frozen=True)
class LayerKind:
    """What the layers of one model may differ in.

    With a ``window``, a token attends to itself and to the ``window`` - 1 tokens before it.
    ``rotates``: queries and keys of this layer are rotated, if those of the model are; by its own
    ``rotary`` settings, if it has any.
    """

    window: int | None = None
    rotates: bool = True
    rotary: RotarySettings | None = None

    def __post_init__(self) -> None:
        if self.window is not None:
            check_whole("the window of attention", self.window)

    def __str__(self) -> str:
        """Return it in words."""
        window = "all before" if self.window is None else f"a window of {self.window}"
        if not self.rotates:
            return f"{window} without rotation"
        if self.rotary is None:
            return window
        only_base = self.rotary == RotarySettings(base=self.rotary.base)
        return f"{window} rotated by " + (
            f"base {self.rotary.base:g}" if only_base else str(self.rotary)
        )

    def beside(self, rotary: RotarySettings) -> "LayerKind":
        """Return this kind in a model with these settings: without what says the same again."""
        own = without_scaling(self.rotary) if self.rotary is not None and self.rotates else None
        return replace(self, rotary=None if own == rotary else own)


USUAL_LAYER = LayerKind()


@dataclass(frozen=True)
class Multipliers:
    """Constant factors in the forward pass (muP and the paper's model).

    ``embedding`` multiplies the embedding's output, and so does sqrt(hidden), if
    ``embedding_by_width``. Logits are multiplied by ``output``, divided by
    ``hidden / mup_base_width`` where a base width is given. ``attention`` replaces 1/sqrt(head_dim)
    in front of the scores; ``attention_by_inverse_layer`` divides the scores of layer i (from 0) by
    i + 1. ``residual`` multiplies what attention and FFN add to the residual stream.
    """

    embedding: float = 1.0
    output: float = 1.0
    mup_base_width: int | None = None
    attention: float | None = None
    attention_by_inverse_layer: bool = False
    residual: float = 1.0
    embedding_by_width: bool = False

    def __post_init__(self) -> None:
        check_finite("the embedding's multiplier", self.embedding)
        check_finite("the logits' multiplier", self.output)
        check_finite("the branches' multiplier", self.residual)
        if self.attention is not None:
            check_finite("the scores' multiplier", self.attention)
        if self.mup_base_width is not None:
            check_whole("the muP base width", self.mup_base_width)


@dataclass(frozen=True)
class ModelConfig:
    """Sizes and choices of a decoder. ``vocab`` is the true size, without padding.

    ``max_positions`` is the size of the learned position table, or the trained context otherwise.
    ``linear_bias`` gives biases to the projections of the FFN and, unless ``out_bias`` says
    otherwise, to the one that attention ends with; ``qkv_bias`` to query, key and value.
    ``residual``: the FFN reads the residual stream behind attention; or, in parallel, in front of
    it, through a norm of its own or through attention's. ``norm_places``: branches read through
    norms; or what they add is normed; or both. ``qk_norm`` norms each query and key;
    ``qk_norm_of_all`` those of all heads as one. Scores, and logits, approach ``score_cap`` and
    ``logit_cap`` as cap * tanh(value / cap). ``layer_kinds`` says what layers differ in, one for
    each layer; none if they do not.
    """

    layers: int
    hidden: int
    ffn: int
    kv_groups: int
    queries_per_group: int
    head_dim: int
    vocab: int
    max_positions: int
    norm: Norm = "layernorm"
    norm_eps: float = 1e-5
    norm_places: NormPlaces = "before"
    zero_centred_gain: bool = False
    activation: Activation = "gelu"
    linear_bias: bool = True
    qkv_bias: bool = True
    out_bias: bool | None = None
    qk_norm: bool = False
    qk_norm_of_all: bool = False
    score_cap: float | None = None
    logit_cap: float | None = None
    tied: bool = True
    positions: Positions = "rope"
    residual: Residual = "sequential"
    rotary: RotarySettings = field(default_factory=RotarySettings)
    layer_kinds: tuple[LayerKind, ...] = ()
    multipliers: Multipliers = Multipliers()

    def __post_init__(self) -> None:
        for axis, size in self.sizes.items():
            check_whole(str(axis), size)
        for name, words in _WORDS.items():
            if getattr(self, name) not in words:
                raise UsageError(
                    f"{name} {getattr(self, name)}: unknown", f"one of {', '.join(words)}"
                )
        check_finite("norm epsilon", self.norm_eps, least=0)
        for name, cap in (("scores", self.score_cap), ("logits", self.logit_cap)):
            if cap is not None:
                check_finite(f"the cap of {name}", cap, above=0)
        if len(self.layer_kinds) not in (0, self.layers):
            raise UsageError(f"{len(self.layer_kinds)} kinds of layers for {self.layers} layers")
        # What has no effect must not tell models apart.
        kinds, rotary = self.layer_kinds, without_scaling(self.rotary)
        if self.positions in ("rope", "xpos"):
            rotary.check_for(self.head_dim)
            kinds = tuple(kind.beside(rotary) for kind in kinds)
            for kind in kinds:
                (kind.rotary or rotary).check_for(self.head_dim)
        else:
            rotary = RotarySettings()
            kinds = tuple(LayerKind(kind.window) for kind in kinds)
        kinds = kinds if any(kind != USUAL_LAYER for kind in kinds) else ()
        object.__setattr__(self, "rotary", rotary)
        object.__setattr__(self, "layer_kinds", kinds)
        object.__setattr__(self, "qk_norm_of_all", self.qk_norm and self.qk_norm_of_all)
        if self.out_bias == self.linear_bias:
            object.__setattr__(self, "out_bias", None)
        if self.multipliers.attention == self.head_dim**-0.5:
            object.__setattr__(self, "multipliers", replace(self.multipliers, attention=None))

    @property
    def sizes(self) -> dict[Axis, int]:
        """The size of every axis."""
        return {
            Axis.VOCAB: self.vocab,
            Axis.POSITION: self.max_positions,
            Axis.LAYER: self.layers,
            Axis.HIDDEN: self.hidden,
            Axis.KV_GROUP: self.kv_groups,
            Axis.QUERY_PER_GROUP: self.queries_per_group,
            Axis.HEAD_DIM: self.head_dim,
            Axis.FFN: self.ffn,
        }

    @property
    def heads(self) -> int:
        """The number of query heads."""
        return self.kv_groups * self.queries_per_group

    @property
    def gated(self) -> bool:
        """Whether the FFN has a gate beside its up projection."""
        return self.activation in _GATED

    @property
    def norms_before(self) -> bool:
        """Whether branches read the residual stream through norms."""
        return self.norm_places != "after"

    @property
    def norms_after(self) -> bool:
        """Whether what branches add to the residual stream is normed."""
        return self.norm_places != "before"

    @property
    def attention_out_bias(self) -> bool:
        """Whether the projection that attention ends with has a bias."""
        return self.linear_bias if self.out_bias is None else self.out_bias

    def kind(self, layer: int) -> LayerKind:
        """Return what ``layer`` (counted from 0) is like."""
        return self.layer_kinds[layer] if self.layer_kinds else USUAL_LAYER

    @property
    def width_multiplier(self) -> float:
        """The width over muP's base width; 1 without a base width."""
        base = self.multipliers.mup_base_width
        return 1.0 if base is None else self.hidden / base

    @property
    def embedding_factor(self) -> float:
        """What the embedding's output is multiplied by: the effective value, with the width."""
        factor = self.multipliers.embedding
        return factor * self.hidden**0.5 if self.multipliers.embedding_by_width else factor

    @property
    def logit_factor(self) -> float:
        """What the head's product is multiplied by: the effective value, with muP's width in it."""
        return self.multipliers.output / self.width_multiplier

    def attention_factor(self, layer: int) -> float:
        """What the scores of ``layer`` (counted from 0) are multiplied by before the softmax."""
        factor = self.multipliers.attention
        if factor is None:
            factor = self.head_dim**-0.5
        return factor / (layer + 1) if self.multipliers.attention_by_inverse_layer else factor

    def with_sizes(
        self, sizes: dict[Axis, int], donors: Sequence[int] | None = None
    ) -> "ModelConfig":
        """Return this model with other sizes, every multiplier keeping its *effective* value.

        ``donors`` say which layer each new one takes after; the same ones in turn, if not given.
        muP divides the logits by hidden / base width; a wider model therefore gets an output
        multiplier larger by the same ratio (Tele-FLM-1T's published config did just that).
        """
        output = self.multipliers.output
        if self.multipliers.mup_base_width is not None:
            output = output * (sizes[Axis.HIDDEN] / self.hidden)  # the same bits if nothing grows
        donors = donors or [layer % self.layers for layer in range(sizes[Axis.LAYER])]
        return replace(
            self,
            layer_kinds=tuple(self.kind(layer) for layer in donors),
            vocab=sizes[Axis.VOCAB],
            max_positions=sizes[Axis.POSITION],
            layers=sizes[Axis.LAYER],
            hidden=sizes[Axis.HIDDEN],
            kv_groups=sizes[Axis.KV_GROUP],
            queries_per_group=sizes[Axis.QUERY_PER_GROUP],
            head_dim=sizes[Axis.HEAD_DIM],
            ffn=sizes[Axis.FFN],
            multipliers=replace(self.multipliers, output=output),
        )
