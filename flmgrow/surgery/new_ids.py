"""Ids that only a grown model has: what they take of its predictions.

Old logits may all be what they were, and the model worse for it: every id has its share of the
softmax, and new ids with large logits take theirs from the old ones. How much they may take follows
from how they are made (``operators/vocab.py``): no new id is likelier than the average old one.
"""

from dataclasses import dataclass
from math import exp, log

import torch
from torch import Tensor


@dataclass(frozen=True)
class NewIds:
    """What ``new`` ids beside ``old`` ones take, at the position where they take most.

    ``share`` is what they have of the softmax together. ``excess`` is the logarithm of how many
    times as likely as the average old id one of them is, where that is most beyond ``rounding``:
    how far the logit may be off there whose row was rounded when it was stored.
    """

    old: int
    new: int
    share: float
    excess: float
    rounding: float

    def bound(self, slack: float = 0.0) -> float:
        """Return the share that they have at most if ``excess`` is ``slack`` at most."""
        return self.new / (self.new + self.old * exp(-slack))

    def describe(self, slack: float) -> str:
        """Return what they take in words, with what ``slack`` allows."""
        text = (
            f"{self.new} new ids take at most {self.share:.2%} of the softmax "
            f"(allowed {self.bound(slack):.2%})"
        )
        if self.excess <= slack:
            return text
        return f"{text}, one is {_times(self.excess)} times as likely as the average old one"


def _times(excess: float) -> str:
    return f"{exp(excess):.3g}" if excess < log(1e12) else "over 1e12"


class NewIdTotals:
    """Collects it over blocks of the vocabulary; ``rounding`` (b, s) is that of a new logit."""

    def __init__(self, rounding: Tensor) -> None:
        self._old = self._new = 0
        self._rounding = rounding.double()
        self._old_sum = torch.full_like(self._rounding, -torch.inf)
        self._new_sum = self._old_sum.clone()
        self._best = self._old_sum.clone()

    def add(self, old: Tensor, new: Tensor) -> None:
        """Take in the grown model's logits (b, s, v) of old ids and of new ones."""
        self._old += old.shape[-1]
        self._new += new.shape[-1]
        if old.shape[-1]:
            self._old_sum = torch.logaddexp(self._old_sum, old.logsumexp(-1))
        if new.shape[-1]:
            self._new_sum = torch.logaddexp(self._new_sum, new.logsumexp(-1))
            self._best = torch.maximum(self._best, new.amax(-1))

    def result(self) -> NewIds | None:
        """Return what was found; None without new ids."""
        if not self._new:
            return None
        average = self._old_sum - log(self._old)
        share = torch.sigmoid(self._new_sum - self._old_sum).max()
        excess = self._best - average
        worst = (excess - self._rounding).argmax()
        at_worst = (float(x.flatten()[worst]) for x in (excess, self._rounding))
        return NewIds(self._old, self._new, float(share), *at_worst)
