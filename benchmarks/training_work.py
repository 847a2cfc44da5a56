"""What the trainers that ``bench_training.py`` compares have in common: model, batch, optimizer."""

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from flmgrow.model.config import ModelConfig

LEARNING_RATE, WEIGHT_DECAY, CLIP = 1e-4, 0.01, 1.0
BETAS, EPSILON = (0.9, 0.999), 1e-8

Step = Callable[[], float]
"""Takes one optimizer step, always on the same batch, and returns the loss before it."""


class Work(NamedTuple):
    """What every side trains; the first one leaves its weights in a file for the others."""

    config: ModelConfig
    batch: int
    threads: int
    weights: Path

    def tokens_and_labels(self) -> tuple[Tensor, Tensor]:
        """Return the batch, twice (batch, length)."""
        shape = (self.batch, self.config.max_positions + 1)
        chance = torch.Generator().manual_seed(0)
        drawn = torch.randint(self.config.vocab, shape, generator=chance)
        return drawn[:, :-1].contiguous(), drawn[:, 1:].contiguous()
