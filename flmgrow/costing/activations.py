"""What autograd keeps of a micro-batch for the backward pass, in each layer and in the head.

Inputs of norms and of products, as in Korthikanti et al. (2022), section 4.1; attention is fused
and keeps no scores. Where a part of a layer is frozen, each of them is kept only if something needs
it: a product its input for the gradient of its own matrix; norms, attention and activation
functions theirs where a gradient comes to what they give out.
"""

from dataclasses import dataclass, field, replace

from flmgrow.model.config import ModelConfig
from flmgrow.model.flops import TrainedParts, computations

FULL = 4
"""Bytes of a float32: gradients are summed in it, and the optimizer's states kept."""

HEAD = None
"""What stands for what lies behind the last layer, in the place of a layer's number."""

_SCORES = "scores"


@dataclass(frozen=True)
class Microbatch:
    """What a rank computes on at once: ``sequences`` of ``length`` tokens, in numbers of so many
    bytes, and how its layers are run; ``packed`` samples need masks.
    """

    sequences: int
    length: int
    width: int
    tp: int
    sequence_parallel: bool
    recompute: str
    packed: bool

    @property
    def tokens(self) -> int:
        """The tokens of it."""
        return self.sequences * self.length


@dataclass(frozen=True)
class LayerGradients:
    """The tensors of a layer behind which there is a gradient, and the matrices that have their
    own.
    """

    reached: set[str] = field(default_factory=set)
    trains: set[str] = field(default_factory=set)

    def norm(self, name: str) -> bool:
        """Whether a gradient comes to what a norm gives out."""
        return any(each.startswith(f"{name}.") for each in self.reached)


def gradients_of(
    config: ModelConfig, sequence_length: int, trained: TrainedParts
) -> dict[int | None, LayerGradients]:
    """Return which gradients a step computes in each layer; HEAD stands for what is in none."""
    found: dict[int | None, LayerGradients] = {HEAD: LayerGradients()}
    layer: int | None = HEAD
    for each in computations(config, sequence_length, trained):
        name = _SCORES  # which lie in the layer that they are computed in
        if each.part is not None:
            name, layer = each.part
        inside = found.setdefault(layer, LayerGradients())
        if each.reached:
            inside.reached.add(name)
        if each.trains and each.flops > 0:
            inside.trains.add(name)
    return found


def layer_activations(config: ModelConfig, batch: Microbatch, inside: LayerGradients) -> int:
    """Return the bytes that one layer keeps of one micro-batch for its backward pass.

    ``selective`` recomputation spares the mask of packed samples only.
    """
    spread = batch.tp if batch.sequence_parallel else 1
    if batch.recompute == "full":
        return bool(inside.reached) * batch.tokens * config.hidden * batch.width // spread
    wide = (
        inside.norm("attention_norm"),
        "query" in inside.trains,
        inside.norm("ffn_norm"),
        "up" in inside.trains,
    )
    narrow = _attention_activations(config, inside) + _ffn_activations(config, inside)
    per_token = batch.width * (sum(wide) * config.hidden / spread + narrow / batch.tp)
    masked = batch.packed and batch.recompute == "none" and _SCORES in inside.reached
    return round(batch.tokens * per_token) + masked * batch.tokens * batch.length * batch.width


def whole_layer(config: ModelConfig, batch: Microbatch, inside: LayerGradients) -> int:
    """Return the bytes that a layer keeps of one micro-batch when nothing is computed again."""
    return layer_activations(config, replace(batch, recompute="none"), inside)


def _attention_activations(config: ModelConfig, inside: LayerGradients) -> int:
    """Return how many numbers fused attention keeps of a token: queries, keys, values, context.

    Values are a view of the projection, which stays as a whole; rotated queries and keys are
    copies. Groups' keys and values are repeated for each of their queries. The context is the
    input of the product behind it as well. Norms of queries and keys keep what they norm: keys are
    a view of the projection, and queries, too, where each has a key of its own.
    """
    inner = config.heads * config.head_dim
    if _SCORES not in inside.reached:
        return inner if "attention_out" in inside.trains else 0
    projected = inner + 2 * config.kv_groups * config.head_dim
    rotated = config.positions in ("rope", "xpos")
    if config.queries_per_group > 1:
        normed = inner + projected if config.qk_norm else 0
        return 4 * inner + (normed or (0 if rotated else projected - inner))
    return projected + inner + (2 * inner if rotated or config.qk_norm else 0)


def _ffn_activations(config: ModelConfig, inside: LayerGradients) -> int:
    """Return how many numbers an FFN keeps of a token.

    Of a gated one: both inputs, the gate's activation, and a copy of the other; and of either the
    product's input, if that trains.
    """
    function = (4 if config.gated else 1) if "up" in inside.reached else 0
    return (function + ("down" in inside.trains)) * config.ffn


def head_activations(
    config: ModelConfig, padded_vocab: int, batch: Microbatch, behind: LayerGradients
) -> int:
    """Return the bytes of what lies behind the last layer: the norm's input, its output if the head
    trains, and the logits, in float32 beside narrower ones.
    """
    spread = batch.tp if batch.sequence_parallel else 1
    wide = behind.norm("final_norm") + bool(behind.trains)
    logits = padded_vocab * (FULL + (batch.width if batch.width < FULL else 0)) / batch.tp
    return round(batch.tokens * (wide * config.hidden * batch.width / spread + logits))
