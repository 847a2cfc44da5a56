"""Random choices that are the same on every machine and with every Python.

Items that are drawn from a seed must be the same for everybody who names the seed. Python promises
that of the numbers that :meth:`random.Random.random` gives, and of nothing that is made of them; so
the choices are made of those numbers here. What draws is named by where it draws (a seed, a task,
the number of an item), so that no item depends on how many were drawn before it.
"""

import hashlib
from collections.abc import Sequence
from random import Random
from typing import TypeVar

T = TypeVar("T")


class Draws:
    """Choices that ``names`` (numbers and words) determine."""

    def __init__(self, *names: int | str) -> None:
        seed = hashlib.sha256(repr(names).encode()).digest()
        self._random = Random(int.from_bytes(seed, "big"))

    def below(self, bound: int) -> int:
        """Return an integer of 0 to ``bound`` - 1, each as likely."""
        return int(self._random.random() * bound)

    def between(self, first: int, last: int) -> int:
        """Return an integer of ``first`` to ``last``, each as likely."""
        return first + self.below(last - first + 1)

    def choice(self, values: Sequence[T]) -> T:
        """Return one of ``values``, each as likely."""
        return values[self.below(len(values))]

    def sample(self, values: Sequence[T], count: int) -> list[T]:
        """Return ``count`` different ones of ``values``, in any order."""
        mixed = list(values)
        for place in range(count):
            other = self.between(place, len(mixed) - 1)
            mixed[place], mixed[other] = mixed[other], mixed[place]
        return mixed[:count]

    def shuffled(self, values: Sequence[T]) -> list[T]:
        """Return ``values`` in any order."""
        return self.sample(values, len(values))

    def text(self, alphabet: str, length: int) -> str:
        """Return ``length`` characters of an alphabet."""
        return "".join(self.choice(alphabet) for _ in range(length))
