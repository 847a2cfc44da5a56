"""Which token comes next, given its logits: the likeliest, or one that is drawn.

Drawn tokens must not depend on which other texts are in the batch, so each text has random numbers
of its own.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from flmgrow.errors import UsageError
from flmgrow.model.checks import check_finite, check_whole
from flmgrow.text import Setting, Text

_PRIME = 1_000_003
"""More texts than anybody gives at once: two seeds have no random numbers in common."""


@dataclass(frozen=True)
class Choice:
    """How the next token is chosen.

    ``temperature`` divides the logits; 0 takes the likeliest token. Of what is left, ``top_k``
    keeps so many of the likeliest tokens, then ``top_p`` the fewest whose probabilities add up to
    it (Holtzman et al. 2020, section 3.1). ``seed`` decides on the draws.
    """

    temperature: float = 0.0
    top_k: int | None = None
    top_p: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        check_finite("temperature", self.temperature, least=0)
        check_finite("top_p", self.top_p, above=0)
        check_whole("seed", self.seed, least=0)
        if self.top_k is not None:
            check_whole("top_k", self.top_k)
        if self.top_p > 1:
            raise UsageError(Text(Setting("top_p"), f" is {self.top_p:g}"), wanted="at most 1")

    @property
    def draws(self) -> bool:
        """Whether tokens are drawn."""
        return self.temperature > 0

    def generator(self, text: int) -> torch.Generator:
        """Return the random numbers of the text with this number."""
        return torch.Generator().manual_seed((self.seed * _PRIME + text) % (1 << 63))


LIKELIEST = Choice()


def probabilities(logits: Tensor, choice: Choice) -> Tensor:
    """Return the probabilities (b, v) in float64 with which tokens are drawn; others are 0."""
    scaled = logits.double() / choice.temperature
    if choice.top_k is not None and choice.top_k < scaled.shape[-1]:
        least = scaled.topk(choice.top_k, -1).values[:, -1:]
        scaled = scaled.masked_fill(scaled < least, -torch.inf)
    found = scaled.softmax(-1)
    if choice.top_p < 1:
        ordered, order = torch.sort(found, dim=-1, descending=True, stable=True)
        before = ordered.cumsum(-1) - ordered  # what likelier tokens add up to
        dropped = torch.zeros_like(found, dtype=torch.bool)
        dropped.scatter_(-1, order, before >= choice.top_p)
        found = found.masked_fill(dropped, 0.0)
    return found / found.sum(-1, keepdim=True)


def choose(logits: Tensor, choice: Choice, generators: Sequence[torch.Generator]) -> Tensor:
    """Return the next token (b,) of each text, given its logits (b, v)."""
    if not choice.draws:
        return logits.argmax(-1)
    rows = probabilities(logits, choice).cpu()
    drawn = [
        torch.multinomial(row, 1, generator=own) for row, own in zip(rows, generators, strict=True)
    ]
    return torch.cat(drawn).to(logits.device)
