"""Items of a classification set, with symbols in place of its labels.

A model may know a published set by heart, or guess what *yes* goes with. So the paper replaces the
labels by random strings, and only the examples tell which string stands for what. It takes sets
with more than 100 items whose classes are fixed, and at most 300 items of each.

Choices of ours: one symbol for each class of a set and a seed; each item has examples of its own,
drawn from the training split, of each class as many (the first ones of each are all different, in
an order that is drawn); a set without a training split lends some items of each class for that.
"""

import string
from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass

from flmgrow.errors import UsageError
from flmgrow.evaluation.tasks.draws import Draws
from flmgrow.text import Found, Text

VERSION = 1
"""Of what is made here: other items or symbols from the same set and seed need another one."""

MORE_THAN, AT_MOST = 100, 300
MOST_CLASSES = 10
ROUNDS = 4
"""How many examples of each class an item has."""
POOL = 256
"""How many items of each class of a training split examples are drawn from."""
LENT = 8
"""The same where there is no training split, and the set itself lends them."""

_CHARACTERS = string.ascii_letters + string.digits + "!#$%&*?@"
_LENGTH = 8
_UNLABELLED: tuple[object, ...] = (None, -1, "-")

Label = Hashable


@dataclass(frozen=True)
class RowChoice:
    """Which rows of a set to take, by their places in it.

    ``tested`` are the items; ``shown`` has the examples of each, places in the training split or,
    where there is none, in the same.
    """

    tested: tuple[int, ...]
    shown: tuple[tuple[int, ...], ...]


def classes_of(labels: Sequence[Label]) -> list[Label]:
    """Return the classes of a set in a fixed order.

    Raises:
        UsageError: If it has no fixed ones.
    """
    found = sorted({*labels} - {*_UNLABELLED}, key=lambda label: (str(type(label)), str(label)))
    if not 2 <= len(found) <= MOST_CLASSES:
        raise UsageError(
            Text(Found(len(found)), " different labels"), wanted=f"2 to {MOST_CLASSES}"
        )
    return found


def symbols(seed: int, task: str, count: int) -> list[str]:
    """Return ``count`` random strings such as ``<30mFC%4Z>``, all different."""
    draws = Draws("symbols", task, seed)
    found: list[str] = []
    while len(found) < count:
        symbol = f"<{draws.text(_CHARACTERS, _LENGTH)}>"
        if symbol not in found:
            found.append(symbol)
    return found


def choose(
    seed: int, task: str, tested: Sequence[Label], training: Sequence[Label] | None
) -> RowChoice:
    """Return the items and examples to take of a set with these labels, and of its training split.

    Raises:
        UsageError: For a set that is too small, or whose training split lacks a class.
    """
    classes = classes_of(tested)
    draws = Draws("items", task, seed)
    order = draws.shuffled(range(len(tested)))
    if training is None:
        pool = _by_class(order, tested, classes, LENT)
        lent = {place for places in pool.values() for place in places}
        order = [place for place in order if place not in lent]
    else:
        pool = _by_class(draws.shuffled(range(len(training))), training, classes, POOL)
    for label, places in pool.items():
        if len(places) < ROUNDS:
            found = f"{len(places)} items labelled {label!r} to take examples from"
            raise UsageError(found, wanted=f"at least {ROUNDS}")
    items = [place for place in order if tested[place] in pool]
    if len(items) <= MORE_THAN:
        raise UsageError(Text(Found(len(items)), " items"), wanted=f"more than {MORE_THAN}")
    items = items[:AT_MOST]
    shown = (tuple(_examples(Draws("examples", task, seed, item), pool)) for item in items)
    return RowChoice(tuple(items), tuple(shown))


def _by_class(
    order: Sequence[int], labels: Sequence[Label], classes: Sequence[Label], most: int
) -> dict[Label, list[int]]:
    """Return the first places of each class in an order."""
    found: dict[Label, list[int]] = {label: [] for label in classes}
    for place in order:
        places = found.get(labels[place])
        if places is not None and len(places) < most:
            places.append(place)
    return found


def _examples(draws: Draws, pool: dict[Label, list[int]]) -> Iterator[int]:
    """Yield examples in rounds, in each of which every class has one."""
    own = {label: draws.sample(places, ROUNDS) for label, places in pool.items()}
    for turn in range(ROUNDS):
        for label in draws.shuffled(list(pool)):
            yield own[label][turn]
