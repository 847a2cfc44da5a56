"""Values out of a file, read as what they must be, with the file's name in every refusal."""

import reprlib
import sys
from collections.abc import Collection, Mapping

from flmgrow.errors import BadCheckpointError
from flmgrow.text import Found, Text

MAX_LAYERS = 10_000
"""More are taken for damage, before memory is spent on them."""

MAX_TOKENS = 1 << 60

MAX = sys.float_info.max


def shown(value: object) -> str:
    """Return a value out of a file as a message can show it, however long or deep it is."""
    return reprlib.repr(value)


class ArgumentReader:
    """Reads typed values from arguments, with the file's name in every refusal.

    ``prefix`` is put before an argument's name there.
    """

    def __init__(self, arguments: Mapping[str, object], where: str, prefix: str = "args.") -> None:
        self.arguments = arguments
        self.where = where
        self.prefix = prefix

    def _bad(self, name: str, wanted: str) -> BadCheckpointError:
        found = self.arguments.get(name, "nothing")
        return BadCheckpointError(
            Text(f"{self.prefix}{name}: found ", Found(shown(found))),
            where=self.where,
            wanted=wanted,
        )

    def integer(self, name: str, default: int | None = None, most: int | None = None) -> int:
        """Return a positive whole number; ``default`` stands for an absent or None one."""
        value = self.arguments.get(name)
        value = default if value is None else value
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise self._bad(name, "a positive whole number")
        if most is not None and value > most:
            raise self._bad(name, f"at most {most}")
        return value

    def optional_integer(self, *names: str) -> int | None:
        """Return the first of ``names`` that is not None, as a whole number, or None."""
        for name in names:
            if self.arguments.get(name) is not None:
                value = self.arguments[name]
                if isinstance(value, bool) or not isinstance(value, int) or value < 0:
                    raise self._bad(name, "a whole number or None")
                return value
        return None

    def number(self, name: str, default: float | None = None) -> float:
        """Return a finite number; ``default`` stands for an absent or None one."""
        value = self.arguments.get(name)
        value = default if value is None else value
        if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) <= MAX:
            raise self._bad(name, "a finite number")
        return float(value)

    def optional_number(self, name: str) -> float | None:
        """Return a number, or None if absent or None."""
        return None if self.arguments.get(name) is None else self.number(name)

    def flag(self, *names: str, default: bool = False) -> bool:
        """Return the first of ``names`` that is present, as a truth value."""
        for name in names:
            if name in self.arguments:
                value = self.arguments[name]
                if value is not None and not isinstance(value, bool):
                    raise self._bad(name, "True or False")
                return bool(value)
        return default

    def choice(self, name: str, choices: Collection[str], default: str) -> str:
        """Return one of ``choices``."""
        value = self.arguments.get(name)
        value = default if value is None else value
        if not isinstance(value, str) or value not in choices:
            raise self._bad(name, " or ".join(choices))
        return value
