"""Items, and the examples that go with each, made by a generator from a seed.

The paper generates its items, so that no model can have been trained on them, and this does so
anew for every seed. An item comes with examples of its own: where there is a rule to be found out
they follow the same rule, and nowhere do they say more of the item than that. :func:`make` sees to
what holds for all generators: no prompt comes twice, among items and examples together, and what
an item is drawn from depends on the seed, the generator and the item's number alone.

A generator has a version. Items of two versions are not to be compared; a change that makes other
items from the same seed needs a new version.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TypeVar

from flmgrow.evaluation.tasks.draws import Draws

T = TypeVar("T")

EXAMPLES = 8
"""How many examples are made for each item: as many shots can be asked for."""
TESTED, SHOWN = "test", "examples"
"""The splits: items, and examples."""


@dataclass(frozen=True)
class Item:
    """What a model is given, and what it should go on with."""

    prompt: str
    answer: str


class Series(Draws):
    """What an item and its examples are drawn from; ``number`` is the item's, from 0."""

    def __init__(self, generator: str, seed: int, number: int, attempt: int) -> None:
        super().__init__(generator, seed, number, attempt)
        self._place = (generator, seed)
        self._number = number

    def turn(self, name: str, values: Sequence[T]) -> T:
        """Return one of ``values`` for the item, so that all come equally often.

        Of as many items in a row as there are values, each has another one. ``name`` tells apart
        what takes turns.
        """
        block, place = divmod(self._number, len(values))
        return values[Draws(*self._place, name, block).shuffled(range(len(values)))[place]]


@dataclass(frozen=True)
class Generator:
    """``draw`` yields an item, and then examples for it without end.

    ``chance`` is how often who knows what answers look like, and no more, is right.
    """

    name: str
    version: int
    draw: Callable[[Series], Iterator[Item]]
    chance: float = 0.0


@dataclass(frozen=True)
class Made:
    """An item, and the examples that go with it."""

    item: Item
    examples: tuple[Item, ...]


def make(generator: Generator, seed: int, count: int, examples: int = EXAMPLES) -> list[Made]:
    """Return ``count`` items with ``examples`` examples each, no prompt twice among them all.

    The items are the same for any number of examples.
    """
    seen: set[str] = set()
    begun = [_first(generator, seed, number, seen) for number in range(count)]
    return [Made(item, _examples(drawn, seen, examples)) for item, drawn in begun]


def documents(made: Sequence[Made]) -> dict[str, list[dict[str, int | str]]]:
    """Return items and examples as lm-eval's documents: those of each split.

    An example has the number of the item that it goes with.
    """
    numbered = list(enumerate(made))
    return {
        TESTED: [_document(number, each.item) for number, each in numbered],
        SHOWN: [_document(number, one) for number, each in numbered for one in each.examples],
    }


def _document(number: int, item: Item) -> dict[str, int | str]:
    return {"item_number": number, "prompt": item.prompt, "answer": item.answer}


def _first(
    generator: Generator, seed: int, number: int, seen: set[str]
) -> tuple[Item, Iterator[Item]]:
    """Return item ``number``, and what its examples are to come from."""
    attempt = 0
    while True:
        drawn = generator.draw(Series(generator.name, seed, number, attempt))
        item = next(drawn)
        if item.prompt not in seen:
            seen.add(item.prompt)
            return item, drawn
        attempt += 1


def _examples(drawn: Iterator[Item], seen: set[str], count: int) -> tuple[Item, ...]:
    found: list[Item] = []
    while len(found) < count:
        item = next(drawn)
        if item.prompt not in seen:
            seen.add(item.prompt)
            found.append(item)
    return tuple(found)
