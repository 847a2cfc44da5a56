"""The operations of training, counted in the ways in which papers count them.

Costs are compared across papers, and papers do not count alike: some take 6 operations for each
parameter and token, with or without the table of embeddings; some count matrix products, with the
ones that recomputation repeats or without. The counts differ by tens of per cent, so all of them
stand side by side, and each figure says which it is.
"""

from dataclasses import dataclass

from flmgrow.model.config import ModelConfig
from flmgrow.model.flops import forward_flops, training_flops
from flmgrow.model.tensors import parameter_count

SIX = 6
"""Per parameter and token: two forward, four backward (Kaplan et al., 2020, section 2.1)."""


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


def operations(config: ModelConfig, sequence_length: int, tokens: float) -> Operations:
    """Return the operations of training a model on so many tokens, in such sequences."""
    parameters = parameter_count(config)
    products = training_flops(config, sequence_length)
    head = 2 * config.vocab * config.hidden
    again = forward_flops(config, sequence_length) - head
    return Operations(
        tokens * products,
        tokens * (products + again),
        tokens * SIX * parameters,
        tokens * SIX * (parameters - table_parameters(config)),
    )


def executed(config: ModelConfig, sequence_length: int, recompute: str) -> int:
    """Return the operations per token that a device carries out, repeated ones included.

    ``recompute`` is a stage's: ``selective`` repeats the attention's scores, ``full`` all layers.
    """
    counted = training_flops(config, sequence_length)
    if recompute == "full":
        return counted + forward_flops(config, sequence_length) - 2 * config.vocab * config.hidden
    if recompute == "selective":
        return counted + config.layers * 4 * sequence_length * config.heads * config.head_dim
    return counted


def table_parameters(config: ModelConfig) -> int:
    """Return how many parameters the tables of tokens and of learned positions have.

    A head of its own is none of them; one that is tied to the table is the table.
    """
    positions = config.max_positions if config.positions == "learned" else 0
    return (config.vocab + positions) * config.hidden
