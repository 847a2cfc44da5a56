"""The tokens that models are compared on."""

import torch
from torch import Tensor

from flmgrow.errors import UsageError
from flmgrow.formats.checkpoint import Checkpoint
from flmgrow.text import Found, Text


def draw_tokens(vocab: int, length: int, seed: int) -> Tensor:
    """Return random ids (2, length) below ``vocab``."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(vocab, (2, length), generator=generator)


def check_tokens(tokens: Tensor, checkpoint: Checkpoint) -> Tensor:
    """Return ``tokens`` as (b, s).

    Raises:
        UsageError: For ids or lengths the model cannot take.
    """
    if tokens.ndim == 1:
        tokens = tokens[None]
    config = checkpoint.config
    if tokens.ndim != 2 or tokens.shape[1] < 2 or tokens.is_floating_point():
        raise UsageError(
            Text("tokens of shape ", Found(tuple(tokens.shape))), wanted="whole numbers (b, s)"
        )
    if int(tokens.min()) < 0 or int(tokens.max()) >= config.vocab:
        found = f"{int(tokens.min())} to {int(tokens.max())}"
        raise UsageError(f"token ids from {found}, the vocabulary has {config.vocab}")
    if config.positions == "learned" and tokens.shape[1] > config.max_positions:
        raise UsageError(
            f"{tokens.shape[1]} tokens in a row, the model has {config.max_positions} positions"
        )
    return tokens.long()
