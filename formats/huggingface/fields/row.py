"""What is known of one field of ``config.json``: who uses it, how it is read, what is written.

Reading, writing and what stops an import all follow from rows; a row says everything once. The same
name may mean something else in another family, so a row has one use for each meaning.
"""

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Generic, TypeVar

from flmgrow.formats.fields import ArgumentReader
from flmgrow.model.config import ModelConfig

LLAMA, QWEN2, QWEN3, MISTRAL = "llama", "qwen2", "qwen3", "mistral"
GRANITE, GPT2, GPT_NEOX, FLM = "granite", "gpt2", "gpt_neox", "flm"
SEED_OSS, ARCEE, NEMOTRON, STABLELM = "seed_oss", "arcee", "nemotron", "stablelm"
PHI3, GPT_BIGCODE, SMOLLM3, STARCODER2 = "phi3", "gpt_bigcode", "smollm3", "starcoder2"
OLMO2, GEMMA, GEMMA2, GEMMA3 = "olmo2", "gemma", "gemma2", "gemma3_text"
MODEL_TYPES = (
    LLAMA, QWEN2, QWEN3, GPT2, GPT_NEOX, MISTRAL, FLM, GRANITE, ARCEE, NEMOTRON, STABLELM, PHI3,
    GPT_BIGCODE, SEED_OSS, SMOLLM3, STARCODER2, OLMO2, GEMMA, GEMMA2, GEMMA3,
)  # fmt: skip
"""Every ``model_type``, in the order in which they are tried for a model from elsewhere."""

Fields = Mapping[str, object]
T = TypeVar("T")
ReadField = Callable[[ArgumentReader, str, T | None], T]
"""Returns a value, given a field's name and what an absent one means here."""


class FieldReader(ArgumentReader):
    """Reads ``config.json`` as a model of one ``family`` does."""

    def __init__(self, fields: Fields, where: str, family: str) -> None:
        super().__init__(fields, where, prefix="")
        self.family = family


def integer(most: int | None = None) -> ReadField[int]:
    """Read a positive whole number, at most ``most``."""

    def read(reader: ArgumentReader, name: str, default: int | None) -> int:
        return reader.integer(name, default, most)

    return read


def optional_integer(reader: ArgumentReader, name: str, default: int | None) -> int | None:
    """Read a whole number or None."""
    value = reader.optional_integer(name)
    return default if value is None else value


def optional_positive(most: int) -> ReadField[int | None]:
    """Read a positive whole number, at most ``most``, or None."""

    def read(reader: ArgumentReader, name: str, default: int | None) -> int | None:
        return default if reader.arguments.get(name) is None else reader.integer(name, most=most)

    return read


def whole_number(reader: ArgumentReader, name: str, default: int | None) -> int:
    """Read a whole number, which may be 0."""
    value = reader.optional_integer(name)
    return (default or 0) if value is None else value


def number(reader: ArgumentReader, name: str, default: float | None) -> float:
    """Read a finite number."""
    return reader.number(name, default)


def optional_number(reader: ArgumentReader, name: str, default: float | None) -> float | None:
    """Read a finite number or None."""
    value = reader.optional_number(name)
    return default if value is None else value


def number_or_null(reader: ArgumentReader, name: str, default: float | None) -> float | None:
    """Read a finite number or None, which an absent one need not mean."""
    return reader.optional_number(name) if name in reader.arguments else default


def flag(reader: ArgumentReader, name: str, default: bool | None) -> bool:
    """Read true or false; null is false."""
    return reader.flag(name, default=bool(default))


def choice(*choices: str) -> ReadField[str]:
    """Read one of ``choices``."""

    def read(reader: ArgumentReader, name: str, default: str | None) -> str:
        return reader.choice(name, choices, default or choices[0])

    return read


def as_it_is(reader: ArgumentReader, name: str, default: object) -> object:
    """Read any value; null is one."""
    return reader.arguments.get(name, default)


@dataclass(frozen=True)
class Use(Generic[T]):
    """How some ``families`` use a field.

    ``absent`` is what a field means that is not there; None where it must be, or where that follows
    from others. ``value`` is what is written for a model; None where nothing is. An ``optional``
    field is not written where it would be null.
    """

    families: Collection[str]
    reading: ReadField[T]
    absent: T | None = None
    value: Callable[[ModelConfig], object] | None = None
    optional: bool = False

    def __post_init__(self) -> None:
        if not self.families or not set(self.families) <= set(MODEL_TYPES):
            raise ValueError(f"{self.families}: wanted families of {', '.join(MODEL_TYPES)}")


@dataclass(frozen=True)
class Field(Generic[T]):
    """A field, and its ``uses``: each family has one at most.

    In other families, its value must be a ``neutral`` one, if it has any, or say nothing (null,
    false, zero, empty); a ``harmless`` field may hold anything. ``changes`` is told of a value that
    is not neutral: what there is no place for, in words; empty if it may well change nothing.

    ``grown``: what a stored value becomes in a model of other sizes, given it and the model before
    and after. A ``private`` field is not passed on.
    """

    name: str
    uses: tuple[Use[T], ...] = ()
    neutral: tuple[object, ...] | None = None
    changes: str = ""
    harmless: bool = False
    grown: Callable[[object, ModelConfig, ModelConfig], object] | None = None
    private: bool = False

    def __post_init__(self) -> None:
        users = [family for use in self.uses for family in use.families]
        if not self.name or len(users) != len(set(users)):
            raise ValueError(f"{self.name!r}: wanted a name, and one use for each family")
        if self.harmless and (self.uses or self.neutral is not None or self.changes):
            raise ValueError(f"{self.name}: is harmless, and said to matter")

    def use_in(self, family: str) -> Use[T] | None:
        """Return how ``family`` uses it, None if it does not."""
        return next((use for use in self.uses if family in use.families), None)

    def get(self, fields: Fields) -> object:
        """Return its value as it is stored, None if it is not."""
        return fields.get(self.name)

    def absent(self, family: str) -> T | None:
        """Return what it means in ``family`` that the field is not there.

        Raises:
            LookupError: There is none.
        """
        return self._use(family).absent

    def read(self, reader: FieldReader, default: T | None = None) -> T:
        """Return its value; ``default``, if given, stands for an absent one.

        Raises:
            BadCheckpointError: For a malformed value.
            LookupError: In a family that has no use for it.
        """
        use = self._use(reader.family)
        return use.reading(reader, self.name, use.absent if default is None else default)

    def _use(self, family: str) -> Use[T]:
        use = self.use_in(family)
        if use is None:
            raise LookupError(f"{self.name}: a model of type {family} does not use it")
        return use

    def is_neutral(self, value: object) -> bool:
        """Whether ``value`` says nothing to a family that does not use the field."""
        return any(
            value == plain and type(value) is type(plain) for plain in self.neutral or (None,)
        )
