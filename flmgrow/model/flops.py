"""Counting the floating-point operations of training.

Runs of different models are compared by what they cost, so all must count it in the same way.
Counted are the matrix products a model needs, as in Narayanan et al. (2021, equation 3) without
recomputation: 2 operations per weight and token, attention over the whole square of positions, and
a backward pass of twice the forward pass. For multi-head attention and an FFN of 4 x hidden that is
72 L h^2 (1 + s / (6 h) + V / (12 L h)) per token.
"""

from flmgrow.model.config import ModelConfig

BACKWARD_AND_FORWARD = 3


def forward_flops(config: ModelConfig, sequence_length: int) -> int:
    """Return the floating-point operations of a forward pass, per token."""
    inner = config.heads * config.head_dim
    keys_and_values = 2 * config.kv_groups * config.head_dim
    attention = config.hidden * (2 * inner + keys_and_values)
    ffn = (3 if config.gated else 2) * config.hidden * config.ffn
    scores = 4 * sequence_length * inner
    return config.layers * (2 * (attention + ffn) + scores) + 2 * config.vocab * config.hidden


def training_flops(config: ModelConfig, sequence_length: int) -> int:
    """Return the floating-point operations of a training step, per token."""
    return BACKWARD_AND_FORWARD * forward_flops(config, sequence_length)
