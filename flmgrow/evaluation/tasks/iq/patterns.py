"""Pattern mining: find out from examples, with no instruction, what is done to some letters.

The paper has three patterns, after functions on lists in BIG-bench: put a fixed head and tail
around the letters, repeat all of them, or take a fixed number of them from the front. Head, tail
and number are an item's own, the same in all its examples. Letters are drawn uniformly, as there;
the lengths are choices of ours.
"""

import string
from collections.abc import Callable, Iterator

from flmgrow.evaluation.tasks.iq.items import Item, Series

LETTERS = string.ascii_letters
LENGTHS = (4, 5, 6, 7)
"""How many letters are given."""
ENDS = (2, 3, 4)
"""How many letters a head or a tail has."""
SLICES = (1, 2, 3)
"""How many letters are to be taken from the front."""


def head_tail(series: Series) -> Iterator[Item]:
    """Yield letters that get a head and a tail."""
    head = series.text(LETTERS, series.turn("head", ENDS))
    tail = series.text(LETTERS, series.turn("tail", ENDS))
    return _items(series, lambda letters: head + letters + tail)


def full_repeating(series: Series) -> Iterator[Item]:
    """Yield letters that are to be repeated."""
    return _items(series, lambda letters: letters * 2)


def head_slicing(series: Series) -> Iterator[Item]:
    """Yield letters of which the first ones are wanted."""
    count = series.turn("count", SLICES)
    return _items(series, lambda letters: letters[:count])


def _items(series: Series, pattern: Callable[[str], str]) -> Iterator[Item]:
    length = series.turn("length", LENGTHS)
    while True:
        letters = series.text(LETTERS, length)
        yield Item(f"Input: {letters}\nOutput:", pattern(letters))
        length = series.choice(LENGTHS)
