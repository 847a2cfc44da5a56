"""What a number must be to be held in a value: a value that is not possible must not exist.

Whatever holds a size checks it when it is made, so no function further in asks again.
"""

from math import inf
from numbers import Integral, Real

from flmgrow.errors import UsageError
from flmgrow.text import Found, Text


def check_whole(name: str, value: object, least: int = 1) -> None:
    """Raise UsageError, which calls the value ``name``, unless it is a whole number from ``least``
    on.
    """
    if not isinstance(value, Integral) or isinstance(value, bool):
        raise UsageError(Text(f"{name} is ", Found(f"{value!r}")), wanted="a whole number")
    if int(value) < least:
        raise UsageError(Text(f"{name}: ", Found(value)), wanted=f"at least {least}")


def check_finite(name: str, value: object, above: float = -inf, least: float = -inf) -> None:
    """Raise UsageError, which calls the value ``name``, unless it is a finite number, more than
    ``above`` and at least ``least``.
    """
    if not isinstance(value, Real) or isinstance(value, bool) or not abs(float(value)) < inf:
        raise UsageError(Text(f"{name} is ", Found(f"{value!r}")), wanted="a finite number")
    if float(value) <= above:
        raise UsageError(Text(f"{name} is ", Found(value)), wanted=f"more than {above:g}")
    if float(value) < least:
        raise UsageError(Text(f"{name} is ", Found(value)), wanted=f"at least {least:g}")
