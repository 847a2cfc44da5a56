"""Counting the floating-point operations of training.

Runs of different models are compared by what they cost, so all must count it in the same way.
Counted are the matrix products a model needs, as in Narayanan et al. (2021, equation 3) without
recomputation: 2 operations per weight and token, attention over the whole square of positions, and
a backward pass of twice the forward pass. For multi-head attention and an FFN of 4 x hidden that is
72 L h^2 (1 + s / (6 h) + V / (12 L h)) per token.

Where a part is frozen, the backward pass is shorter. A weight that does not train needs no gradient
of its own, and where nothing trains before it, its input needs none either. Counted is what
megatron-core computes: a weight that trains has the gradient of its input computed along with its
own, and one of which only some entries are frozen has its whole gradient computed.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from math import prod

from flmgrow.model.axes import Axis, Role
from flmgrow.model.config import ModelConfig
from flmgrow.model.tensors import LogicalTensor, logical_tensors

BACKWARD_AND_FORWARD = 3

TensorInLayer = tuple[str, int | None]
"""A logical tensor in one layer, or (None) one that has no layers."""


@dataclass(frozen=True)
class TrainedParts:
    """What a step trains of a model: all but what is ``still``.

    ``given`` are the layers whose input has a gradient whatever trains before them: those that
    begin a pipeline rank's share, to which another rank sends it. The layer behind the last one is
    the head.
    """

    still: frozenset[TensorInLayer] = frozenset()
    given: frozenset[int] = frozenset()


EVERYTHING = TrainedParts()


@dataclass(frozen=True)
class Computation:
    """What a step does with one tensor, or (``part`` is None) with the scores of attention.

    ``flops`` are those of its products in the forward pass, per token. ``trains`` says whether its
    own gradient is computed, ``reached`` whether that of its input is.
    """

    part: TensorInLayer | None
    flops: int
    trains: bool
    reached: bool

    @property
    def passes(self) -> int:
        """How often so many operations are done: forward, and for each of the two gradients."""
        return 1 + self.trains + self.reached


def computations(
    config: ModelConfig, sequence_length: int, trained: TrainedParts = EVERYTHING
) -> Iterator[Computation]:
    """Yield what a step does, in the order of the forward pass.

    A table that is tied to the head comes twice.
    """
    reached = False
    for place, part, flops in _used(config, sequence_length):
        trains = reached if part is None else part not in trained.still
        reached = reached or trains or place in trained.given
        yield Computation(part, flops, trains, reached)


def _used(
    config: ModelConfig, sequence_length: int
) -> Iterator[tuple[int, TensorInLayer | None, int]]:
    """Yield what the forward pass uses: in which layer, which tensor, and what its product takes.

    What lies before the layers is in -1, what lies behind them in the next one.
    """
    tensors = logical_tensors(config)
    inside = {name: _product(each, config) for name, each in tensors.items() if each.layered}
    scores = 4 * sequence_length * config.heads * config.head_dim
    embeddings = [name for name in tensors if name.endswith("embedding")]
    behind = [name for name in tensors if name not in inside and name not in embeddings]
    for name in embeddings:
        yield -1, (name, None), 0
    for layer in range(config.layers):
        for name, product in inside.items():
            if name == "attention_out":
                yield layer, None, scores
            yield layer, (name, layer), product
    for name in behind:
        yield config.layers, (name, None), _product(tensors[name], config)
    if config.tied:
        yield config.layers, ("embedding", None), 2 * config.vocab * config.hidden


def _product(tensor: LogicalTensor, config: ModelConfig) -> int:
    """Return the operations for which a token is multiplied with a tensor, in one layer."""
    if not any(Role.READS in roles for roles in tensor.roles):
        return 0
    shape = zip(tensor.axes, tensor.shape(config.sizes), strict=True)
    return 2 * prod(size for axis, size in shape if axis is not Axis.LAYER)


def forward_flops(config: ModelConfig, sequence_length: int) -> int:
    """Return the floating-point operations of a forward pass, per token."""
    inner = config.heads * config.head_dim
    keys_and_values = 2 * config.kv_groups * config.head_dim
    attention = config.hidden * (2 * inner + keys_and_values)
    ffn = (3 if config.gated else 2) * config.hidden * config.ffn
    scores = 4 * sequence_length * inner
    return config.layers * (2 * (attention + ffn) + scores) + 2 * config.vocab * config.hidden


def training_flops(
    config: ModelConfig, sequence_length: int, trained: TrainedParts = EVERYTHING
) -> int:
    """Return the floating-point operations of a training step, per token."""
    if not trained.still:
        return BACKWARD_AND_FORWARD * forward_flops(config, sequence_length)
    found = computations(config, sequence_length, trained)
    return sum(each.flops * each.passes for each in found)
