"""The words for methods and new layers, and checks that a given word is one of them.

A word that stands for a choice is one of those that there are, wherever a value holds it. A word
that nobody knows must not fall through to some default of a dispatch.
"""

from collections.abc import Mapping
from typing import Literal

from flmgrow.errors import UsageError
from flmgrow.model.masks import Dimension

METHODS: Mapping[Dimension, tuple[str, ...]] = {
    Dimension.WIDTH: ("mask", "zero", "copy"),
    Dimension.HEADS: ("mask", "zero", "copy"),
    Dimension.FFN: ("mask", "zero", "copy"),
    Dimension.DEPTH: ("mask", "zero", "copy", "stack", "interleave"),
}

NewLayers = Literal["copy", "random"]
"""What fresh layers start as: the old layer before them, or their own initialisation."""

Moments = Literal["keep", "reset", "asymmetric"]
"""What becomes of Adam's moments (``operators/moments.py``)."""

FreshSecondMoment = Literal["zero", "mean"]
"""The exp_avg_sq of fresh entries: a fill, by its name (``operators/moments.py``)."""

FreshRows = Literal["mean", "drawn"]
"""What new ids start as: near the mean of the old rows, or (as manifests without a word on it mean)
drawn around zero (``operators/vocab.py``).
"""


def either(words: tuple[str, ...]) -> str:
    """Return ``a, b or c``."""
    *rest, last = words
    return f"{', '.join(rest)} or {last}" if rest else last


def check_choice(name: str, word: object, words: tuple[str, ...]) -> None:
    """Raise UsageError, which calls the choice ``name``, if ``word`` is none of ``words``."""
    if word not in words:
        raise UsageError(f"{name} {word}: wanted {either(words)}")


def no_method(dimension: Dimension, method: str, asked: str = "") -> UsageError:
    """Return the error of a method that ``dimension`` has not; ``asked`` is what asked for it."""
    hint = f"one of {', '.join(METHODS[dimension])}"
    if others := [other for other, known in METHODS.items() if method in known]:
        hint += f"; {method} is for {', '.join(others)} alone: say {others[0]}={method}"
    return UsageError(f"{asked}{method!r} is no method for {dimension}", hint)


def check_methods(methods: Mapping[Dimension, str]) -> None:
    """Raise UsageError unless ``methods`` has one of its methods for every dimension."""
    for dimension in Dimension:
        if dimension not in methods:
            raise UsageError(
                f"no method for {dimension}", f"one of {', '.join(METHODS[dimension])}"
            )
        if methods[dimension] not in METHODS[dimension]:
            raise no_method(dimension, methods[dimension])
    if strange := [str(name) for name in methods if name not in METHODS]:
        raise UsageError(f"{strange[0]!r} is no dimension", f"one of {', '.join(Dimension)}")
