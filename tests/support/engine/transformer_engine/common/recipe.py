"""How numbers are scaled before they are rounded to 8 bits."""

from enum import Enum, auto
from typing import Any


class Format(Enum):
    """Which 8 bits: HYBRID has more of the exponent for gradients."""

    E4M3 = auto()
    HYBRID = auto()


class _Recipe:
    def __init__(self, **settings: Any) -> None:
        self.settings = settings


class Float8CurrentScaling(_Recipe):
    """By the largest number of each tensor at hand: the only one that the stand-in computes."""


class DelayedScaling(_Recipe):
    """By the largest numbers of steps before; megatron-core derives from it."""
