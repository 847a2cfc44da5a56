"""One description of a decoder, free of any file format, that is valid whenever it can be held.

Formats translate their own arguments to and from this (``formats/megatron/arguments/model.py``);
growth changes its sizes and the few values that must follow; the reference forward computes exactly
what it says. A field that changes the function and is not in here does not exist for flmgrow: the
formats must refuse it.
"""

from dataclasses import dataclass, replace
from typing import Literal, get_args

from flmgrow.errors import UsageError
from flmgrow.model.axes import Axis
from flmgrow.model.checks import check_finite, check_whole
from flmgrow.text import Found, Text

Norm = Literal["layernorm", "rmsnorm"]
Activation = Literal["gelu", "gelu_tanh", "swiglu", "squared_relu"]
Positions = Literal["learned", "rope", "xpos", "none"]

_WORDS = {
    "norm": get_args(Norm),
    "activation": get_args(Activation),
    "positions": get_args(Positions),
}


@dataclass(frozen=True)
class RotarySettings:
    """How rotary positions are computed; nothing here depends on a size that grows.

    ``base`` is theta; ``percent`` the rotated share of head_dim; ``interleaved`` rotates
    neighbouring pairs instead of halves; ``scaling_factor`` is Llama-3 frequency scaling;
    ``interpolation`` divides positions. ``xpos_scale_base`` and ``xpos_centre`` belong to xPos:
    query and key are scaled by zeta ** (+-(n - centre) / scale_base) with zeta_i = (2i / d + 0.4) /
    1.4 (Sun et al. 2022, section 3).

    Entries rotate in pairs: where the rotated share comes to an odd number, one entry more rotates,
    and the exponents of theta stay fractions of that number (megatron-core 0.16's
    ``RotaryEmbedding``, transformers 5's GPT-NeoX).
    """

    base: float = 10000.0
    percent: float = 1.0
    interleaved: bool = False
    scaling_factor: float | None = None
    interpolation: float | None = None
    xpos_scale_base: float = 512.0
    xpos_centre: int = 0

    def __post_init__(self) -> None:
        check_finite("the base of rotary positions", self.base, above=0)
        check_finite("the rotated share of a head", self.percent)
        if not 0 <= self.percent <= 1:
            raise UsageError(
                Text("the rotated share of a head is ", Found(f"{self.percent:g}")), wanted="0 to 1"
            )
        for name in ("scaling_factor", "interpolation"):
            if getattr(self, name) is not None:
                check_finite(f"rotary {name.replace('_', ' ')}", getattr(self, name), above=0)
        check_finite("xPos's scale base", self.xpos_scale_base, above=0)
        check_whole("xPos's centre", self.xpos_centre, least=0)

    def size(self, head_dim: int) -> int:
        """Return how many of a head's entries are to rotate; exponents are fractions of it."""
        return int(head_dim * self.percent)

    def pairs(self, head_dim: int) -> int:
        """Return how many pairs of a head's entries rotate."""
        return -(-self.size(head_dim) // 2)


@dataclass(frozen=True)
class Multipliers:
    """Constant factors in the forward pass (muP and the paper's model).

    ``embedding`` multiplies the embedding's output. Logits are multiplied by ``output``, divided by
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
    """Sizes and choices of a pre-norm decoder. ``vocab`` is the true size, without padding.

    ``max_positions`` is the size of the learned position table, or the trained context otherwise.
    ``linear_bias`` gives biases to the projections of the FFN and, unless ``out_bias`` says
    otherwise, to the one that attention ends with; ``qkv_bias`` to query, key and value.
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
    zero_centred_gain: bool = False
    activation: Activation = "gelu"
    linear_bias: bool = True
    qkv_bias: bool = True
    out_bias: bool | None = None
    qk_norm: bool = False
    tied: bool = True
    positions: Positions = "rope"
    rotary: RotarySettings = RotarySettings()
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
        pairs = self.rotary.pairs(self.head_dim)
        if self.positions in ("rope", "xpos") and 2 * pairs > self.head_dim:
            raise UsageError(
                f"rotary positions turn pairs: heads of {self.head_dim} entries have no {pairs}",
                "rotate a smaller share of each head, or give heads an even size",
            )
        if self.positions not in ("rope", "xpos"):  # what has no effect must not tell models apart
            object.__setattr__(self, "rotary", RotarySettings())
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
        return self.activation == "swiglu"

    @property
    def attention_out_bias(self) -> bool:
        """Whether the projection that attention ends with has a bias."""
        return self.linear_bias if self.out_bias is None else self.out_bias

    @property
    def width_multiplier(self) -> float:
        """The width over muP's base width; 1 without a base width."""
        base = self.multipliers.mup_base_width
        return 1.0 if base is None else self.hidden / base

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

    def with_sizes(self, sizes: dict[Axis, int]) -> "ModelConfig":
        """Return this model with other sizes, every multiplier keeping its *effective* value.

        muP divides the logits by hidden / base width; a wider model therefore gets an output
        multiplier larger by the same ratio (Tele-FLM-1T's published config did just that).
        """
        output = self.multipliers.output
        if self.multipliers.mup_base_width is not None:
            output = output * (sizes[Axis.HIDDEN] / self.hidden)  # the same bits if nothing grows
        return replace(
            self,
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
