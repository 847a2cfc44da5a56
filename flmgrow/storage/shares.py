"""Dividing work among ranks: the same division on every rank, and about as much for each."""

from collections.abc import Callable, Iterable, Sequence
from typing import TypeVar

Item = TypeVar("Item")


def shared_out(
    items: Iterable[Item], cost: Callable[[Item], int], ranks: int, begun: Sequence[int] = ()
) -> list[list[Item]]:
    """Return for every rank the items that are its own, each list in the order of ``items``.

    The costliest come first, each to the rank that has least so far (the lowest of several).
    ``begun`` is what ranks have to do besides.
    """
    known = list(items)
    loads = [*begun, *[0] * (ranks - len(begun))]
    owned: list[list[int]] = [[] for _ in range(ranks)]
    for index in sorted(range(len(known)), key=lambda i: (-cost(known[i]), i)):
        rank = loads.index(min(loads))
        loads[rank] += cost(known[index])
        owned[rank].append(index)
    return [[known[index] for index in sorted(own)] for own in owned]
