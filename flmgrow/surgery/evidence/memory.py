"""Estimating the memory that a comparison of two models takes, and refusing what does not fit.

What running models takes beside blocks of their weights grows with the tokens they run on. The
forward holds what one layer makes of all tokens, attention its shares of all pairs of them, and
gradients need all weights and what every layer made. That is told before hours of reading, not by
the system when it runs out.
"""

from math import ceil

import torch

from flmgrow.errors import UsageError
from flmgrow.model.config import ModelConfig
from flmgrow.model.tensors import parameter_count
from flmgrow.surgery.comparison import VOCAB_BLOCK
from flmgrow.text import Setting, Text

MIB = 1 << 20
FLOAT64 = 8

_OF_RESIDUAL, _OF_ATTENTION, _OF_SHARES, _OF_FFN, _OF_LOGITS = 12, 6, 4, 5, 6
"""How many values of each kind are in memory at once: both streams, their norms, and steps between.
"""

_KEPT_OF_SHARES, _KEPT_OF_FFN, _KEPT_OF_RESIDUAL = 3, 5, 10
"""How many of each layer are kept to go back through it."""


def forward_bytes(config: ModelConfig, rows: int, length: int, itemsize: int, block: int) -> int:
    """Return what a layer, or the head, holds for ``rows`` of ``length`` tokens, in bytes.

    ``itemsize`` is that of the dtype computed in; ``block`` elements of a weight are read at once.
    """
    tokens = rows * length
    shares = _OF_SHARES * tokens * length * config.heads
    attention = _OF_ATTENTION * tokens * config.heads * config.head_dim + shares
    ffn = _OF_FFN * tokens * config.ffn
    ids = min(config.vocab, max(VOCAB_BLOCK, block // config.hidden))
    layer = _OF_RESIDUAL * tokens * config.hidden * FLOAT64 + max(attention, ffn) * itemsize
    return max(layer, _OF_LOGITS * tokens * ids * FLOAT64)


def gradient_bytes(before: ModelConfig, after: ModelConfig, rows: int, length: int) -> int:
    """Return what gradients take at their peak: those of both models, and one model itself."""
    tokens = rows * length

    def graph(config: ModelConfig) -> int:
        of_layer = (
            _KEPT_OF_SHARES * length * config.heads
            + _KEPT_OF_FFN * config.ffn
            + _KEPT_OF_RESIDUAL * config.hidden
        )
        return FLOAT64 * tokens * (config.layers * of_layer + 4 * config.vocab)

    old, new = (FLOAT64 * parameter_count(config) for config in (before, after))
    return max(2 * old + graph(before), old + 2 * new + graph(after))


def check_memory(
    configs: tuple[ModelConfig, ModelConfig],
    tokens: torch.Tensor,
    itemsize: int,
    block: int,
    gradients: bool,
    spare: int,
) -> None:
    """Raise UsageError if running both models on ``tokens`` (b, s) takes more than ``spare`` bytes.

    ``gradients`` are computed, too.
    """
    rows, length = tokens.shape
    needed = max(forward_bytes(config, rows, length, itemsize, block) for config in configs)
    what = Text(Setting("tokens"), f": {rows} x {length} tokens")
    if gradients and (more := gradient_bytes(*configs, rows, length)) > needed:
        needed = more
        what = Text(Setting("gradients"), f": both models on {rows} x {length} tokens")
    if needed > spare:
        missing = ceil((needed - spare) / MIB)
        raise UsageError(
            Text(
                what,
                f" need about {ceil(needed / MIB)} MiB, ",
                Setting("max_memory"),
                f" leaves {spare // MIB} MiB",
            ),
            Text(
                f"give {missing} MiB more to ",
                Setting("max_memory"),
                " if they are there, or fewer tokens",
            ),
        )
