"""The operations of training, counted in the ways in which papers count them.

Costs are compared across papers, and papers do not count alike: some take 6 operations for each
parameter and token, with or without the table of embeddings; some count matrix products, with the
ones that recomputation repeats or without. The counts differ by tens of per cent, so all of them
stand side by side, and each figure says which it is.
"""

from dataclasses import dataclass, replace
from math import prod

from flmgrow.model.axes import Axis
from flmgrow.model.config import ModelConfig
from flmgrow.model.flops import (
    EVERYTHING,
    TensorInLayer,
    TrainedParts,
    computations,
    forward_flops,
    training_flops,
)
from flmgrow.model.tensors import logical_tensors

TABLES = ("embedding", "position_embedding")
"""The tables of tokens and of learned positions; a head that is tied is the table."""


@dataclass(frozen=True)
class Operations:
    """Floating-point operations of one model over some tokens, by each way of counting.

    ``products`` are those of the matrix products (Narayanan et al., 2021, equation 3, without
    recomputation); ``recomputed`` has the layers' forward pass twice, as full recomputation does
    (the equation as printed). ``six_n`` is 6 for each parameter, ``six_n_without_table`` for each
    that is not in a table of embeddings.
    """

    products: float
    recomputed: float
    six_n: float
    six_n_without_table: float

    def __add__(self, other: "Operations") -> "Operations":
        return Operations(
            self.products + other.products,
            self.recomputed + other.recomputed,
            self.six_n + other.six_n,
            self.six_n_without_table + other.six_n_without_table,
        )

    def to_json(self) -> dict[str, float]:
        """Return the counts by name."""
        return dict(vars(self))


NONE = Operations(0, 0, 0, 0)


def operations(
    config: ModelConfig, sequence_length: int, tokens: float, trained: TrainedParts = EVERYTHING
) -> Operations:
    """Return the operations of training a model on so many tokens, in such sequences.

    Of a parameter that does not train 6 are fewer, too: by 2 for its gradient, and by 2 more if its
    input has none.
    """
    six_n = _by_parameter(config, sequence_length, trained)
    tables = sum(six_n.get((name, None), 0) for name in TABLES)
    return Operations(
        tokens * training_flops(config, sequence_length, trained),
        tokens * executed(config, sequence_length, "full", trained),
        tokens * sum(six_n.values()),
        tokens * (sum(six_n.values()) - tables),
    )


def _by_parameter(
    config: ModelConfig, length: int, trained: TrainedParts
) -> dict[TensorInLayer, int]:
    """Return 2 operations for each parameter of a tensor and each time that it is used."""
    tensors = logical_tensors(config)
    sizes = {**config.sizes, Axis.LAYER: 1}
    return {
        each.part: 2 * each.passes * prod(tensors[each.part[0]].shape(sizes))
        for each in computations(config, length, trained)
        if each.part is not None
    }


def executed(
    config: ModelConfig, sequence_length: int, recompute: str, trained: TrainedParts = EVERYTHING
) -> int:
    """Return the operations per token that a device carries out, repeated ones included.

    ``recompute`` is a stage's: ``selective`` repeats the attention's scores, ``full`` all layers,
    whose inputs all have a gradient then.
    """
    if recompute == "full":
        trained = replace(trained, given=trained.given | {0})
        again = forward_flops(config, sequence_length) - 2 * config.vocab * config.hidden
    elif recompute == "selective":
        found = computations(config, sequence_length, trained)
        again = sum(each.flops for each in found if each.part is None and each.reached)
    else:
        again = 0
    return training_flops(config, sequence_length, trained) + again
