"""What is known of one of Megatron-LM's arguments: its name, how it is read, what is written.

Reading, writing and the sets of names all follow from rows; a row says everything once. Its
defaults in the versions of Megatron-LM are in ``defaults.json`` and joined by name.
"""

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from enum import Enum
from typing import Any, Generic, TypeVar

from flmgrow.formats.fields import ArgumentReader
from flmgrow.formats.layout.placements import Layout
from flmgrow.formats.megatron.arguments.defaults import defaults
from flmgrow.model.config import ModelConfig

Arguments = Mapping[str, object]
T = TypeVar("T")
ReadArgument = Callable[[ArgumentReader, tuple[str, ...], T | None], T]
"""Returns a value, given an argument's names, newest first, and what an absent one means here."""


def stored_name(arguments: Arguments, names: tuple[str, ...]) -> str:
    """Return the first of ``names`` that ``arguments`` have; the last, the oldest, if none is."""
    return next((name for name in names if name in arguments), names[-1])


def integer(usual: int | None = None, most: int | None = None) -> ReadArgument[int]:
    """Read a positive whole number, at most ``most``; it must be there if none is usual."""

    def read(reader: ArgumentReader, names: tuple[str, ...], default: int | None) -> int:
        name = stored_name(reader.arguments, names)
        return reader.integer(name, usual if default is None else default, most)

    return read


def optional_integer(
    reader: ArgumentReader, names: tuple[str, ...], default: int | None
) -> int | None:
    """Read a whole number or None."""
    value = reader.optional_integer(*names)
    return default if value is None else value


def optional_size(
    reader: ArgumentReader, names: tuple[str, ...], default: int | None
) -> int | None:
    """Read a positive whole number or None."""
    name = stored_name(reader.arguments, names)
    return default if reader.arguments.get(name) is None else reader.integer(name)


def number(usual: float) -> ReadArgument[float]:
    """Read a finite number."""

    def read(reader: ArgumentReader, names: tuple[str, ...], default: float | None) -> float:
        name = stored_name(reader.arguments, names)
        return reader.number(name, usual if default is None else default)

    return read


def optional_number(
    reader: ArgumentReader, names: tuple[str, ...], default: float | None
) -> float | None:
    """Read a finite number or None."""
    value = reader.optional_number(stored_name(reader.arguments, names))
    return default if value is None else value


def flag(usual: bool = False) -> ReadArgument[bool]:
    """Read True or False; None is False."""

    def read(reader: ArgumentReader, names: tuple[str, ...], default: bool | None) -> bool:
        return reader.flag(*names, default=usual if default is None else default)

    return read


def choice(choices: Collection[str], usual: str) -> ReadArgument[str]:
    """Read one of ``choices``."""

    def read(reader: ArgumentReader, names: tuple[str, ...], default: str | None) -> str:
        return reader.choice(stored_name(reader.arguments, names), choices, default or usual)

    return read


def as_it_is(reader: ArgumentReader, names: tuple[str, ...], default: object) -> object:
    """Read any value; None stands for an absent one."""
    value = reader.arguments.get(stored_name(reader.arguments, names))
    return default if value is None else value


@dataclass(frozen=True)
class Argument(Generic[T]):
    """An argument's ``name``, and how it is read.

    ``older`` is what earlier versions call it. ``understood``: it is translated to the model or the
    layout, and back; any other one is merely looked at or brought up to date.
    """

    name: str
    reading: ReadArgument[T]
    older: str | None = None
    understood: bool = True

    def __post_init__(self) -> None:
        if not all(name.isidentifier() for name in self.names) or self.older == self.name:
            raise ValueError(f"{self.names}: wanted one or two names of arguments")

    @property
    def names(self) -> tuple[str, ...]:
        """All names, newest first."""
        return (self.name,) if self.older is None else (self.name, self.older)

    @property
    def defaults(self) -> tuple[object, ...]:
        """The defaults that versions of Megatron-LM have for it; none where they have none."""
        return defaults().get(self.name, ())

    def name_in(self, arguments: Arguments) -> str:
        """Return the name under which ``arguments`` have it, the oldest if they have not."""
        return stored_name(arguments, self.names)

    def get(self, arguments: Arguments) -> object:
        """Return its value as it is stored, None if it is not."""
        return arguments.get(self.name_in(arguments))

    def read(self, reader: ArgumentReader, default: T | None = None) -> T:
        """Return its value; ``default``, if given, stands for an absent one.

        Raises:
            BadCheckpointError: For a malformed value.
        """
        return self.reading(reader, self.names, default)


def always(_arguments: Arguments, _config: ModelConfig) -> bool:
    """Return True: a value is brought up to every model."""
    return True


def never(_arguments: Arguments, _config: ModelConfig) -> bool:
    """Return False: a value stays as it is stored."""
    return False


@dataclass(frozen=True, kw_only=True)
class ModelArgument(Argument[T]):
    """An argument that a model decides.

    ``value``: what Megatron-LM holds for a model. ``when``: whether it is written into stored
    arguments that are brought up to a model, and ``grown`` what is written there if that is not
    ``value``.
    """

    value: Callable[[ModelConfig], object]
    when: Callable[[Arguments, ModelConfig], bool] = never
    grown: Callable[[Arguments, ModelConfig], object] | None = None

    def written(self, arguments: Arguments, config: ModelConfig) -> dict[str, object]:
        """Return what is written over stored ``arguments`` so that they say ``config``."""
        if not self.when(arguments, config):
            return {}
        value = self.value(config) if self.grown is None else self.grown(arguments, config)
        return {self.name_in(arguments): value}


class When(Enum):
    """When an argument of the layout is written."""

    ALWAYS = "always"
    STORED = "where it is stored"
    SAYING = "where it is stored or has something to say"


@dataclass(frozen=True, kw_only=True)
class LayoutArgument(Argument[T]):
    """An argument that says how the model is laid out over ranks; ``value`` is what it holds."""

    value: Callable[[Layout], object]
    when: When = When.SAYING

    def written(self, arguments: Arguments, layout: Layout) -> dict[str, object]:
        """Return what is written over stored ``arguments`` so that they say ``layout``."""
        value = self.value(layout)
        said = self.when is When.ALWAYS or (self.when is When.SAYING and bool(value))
        return {self.name: value} if said or self.name in arguments else {}


def understood_names(rows: Collection[Argument[Any]]) -> frozenset[str]:
    """Return all names of those of ``rows`` that are understood."""
    return frozenset(name for row in rows if row.understood for name in row.names)
