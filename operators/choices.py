"""The words that stand for a choice: methods, what new layers start as, what becomes of moments.

A word comes in as text, at the border of the program, and is one of those that there are from then
on, wherever a value holds it. A word that nobody knows must not fall through to some default of a
dispatch.
"""

from collections.abc import Collection, Mapping
from enum import StrEnum
from typing import TypeVar

from flmgrow.errors import UsageError
from flmgrow.model.masks import Dimension
from flmgrow.text import Setting, Text

Word = TypeVar("Word", bound=StrEnum)


class Method(StrEnum):
    """How a dimension grows; not every dimension has every method."""

    MASK = "mask"
    ZERO = "zero"
    COPY = "copy"
    STACK = "stack"
    INTERLEAVE = "interleave"


_EXACT = (Method.MASK, Method.ZERO, Method.COPY)

METHODS: Mapping[Dimension, tuple[Method, ...]] = {
    Dimension.WIDTH: _EXACT,
    Dimension.HEADS: _EXACT,
    Dimension.FFN: _EXACT,
    Dimension.DEPTH: (*_EXACT, Method.STACK, Method.INTERLEAVE),
}


class NewLayers(StrEnum):
    """What fresh layers start as: the old layer before them, or their own initialisation."""

    COPY = "copy"
    RANDOM = "random"


class Moments(StrEnum):
    """What becomes of Adam's moments (``operators/moments.py``)."""

    KEEP = "keep"
    RESET = "reset"
    ASYMMETRIC = "asymmetric"


class FreshSecondMoment(StrEnum):
    """The exp_avg_sq of fresh entries: a fill, by its name (``operators/moments.py``)."""

    ZERO = "zero"
    MEAN = "mean"


class FreshRows(StrEnum):
    """What new ids start as: near the mean of the old rows, or (as manifests without a word on it
    mean) drawn around zero (``operators/vocab.py``).
    """

    MEAN = "mean"
    DRAWN = "drawn"


def either(words: Collection[str]) -> str:
    """Return ``a, b or c``."""
    *rest, last = words
    return f"{', '.join(rest)} or {last}" if rest else last


def chosen(name: str | Setting, word: object, kind: type[Word]) -> Word:
    """Return the choice that ``word`` stands for.

    Raises:
        UsageError: If it is no word of this ``kind``; the message calls the choice ``name``.
    """
    for known in kind:
        if word == known:
            return known
    raise UsageError(Text(name, f" {word}: wanted {either(list(kind))}"))


def hold(value: object, **choices: object) -> None:
    """Let a frozen value that is being made hold choices that may have come as words."""
    for name, choice in choices.items():
        object.__setattr__(value, name, choice)


def no_method(dimension: Dimension, method: str, asked: str = "") -> UsageError:
    """Return the error of a method that ``dimension`` has not; ``asked`` is what asked for it."""
    method = str(method)
    hint = f"one of {', '.join(METHODS[dimension])}"
    if others := [other for other, known in METHODS.items() if method in known]:
        hint += f"; {method} is for {', '.join(others)} alone: say {others[0]}={method}"
    return UsageError(Text(asked, f"{method!r} is no method for {dimension}"), hint)


def chosen_method(dimension: Dimension, word: str, asked: str = "") -> Method:
    """Return the method of ``dimension`` that ``word`` stands for.

    Raises:
        UsageError: If it has none.
    """
    for known in METHODS[dimension]:
        if word == known:
            return known
    raise no_method(dimension, word, asked)


def chosen_methods(words: Mapping[Dimension, str]) -> dict[Dimension, Method]:
    """Return the method of every dimension.

    Raises:
        UsageError: Unless each has one of its own.
    """
    methods = {}
    for dimension in Dimension:
        if dimension not in words:
            raise UsageError(
                f"no method for {dimension}", f"one of {', '.join(METHODS[dimension])}"
            )
        methods[dimension] = chosen_method(dimension, words[dimension])
    if strange := [str(name) for name in words if name not in METHODS]:
        raise UsageError(f"{strange[0]!r} is no dimension", f"one of {', '.join(Dimension)}")
    return methods
