"""Texts that call settings by the names their reader knows.

The size that a stage file calls ``model.hidden_size`` is ``--hidden-size`` to who types a command,
and ``hidden_size`` to who calls a function. What refuses it is the same code for all three, and
knows none of them. So an error, a hint or a note is a :class:`Text`: strings, and between them
parts that say what is meant. Where a text is shown, :func:`render` puts it into the words of that
place. Nobody reads a text to change it.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import PurePath
from shlex import quote
from typing import Any, ClassVar, Protocol


class Words:
    """How a place calls settings."""

    verb = "pass"
    """What one does with a setting."""

    def has(self, name: str) -> bool:
        """Whether there is such a setting in this place."""
        return True

    def name(self, name: str) -> str:
        """Return what a setting is called."""
        raise NotImplementedError

    def given(self, name: str, value: object) -> str:
        """Return a setting with its value, ready to be copied."""
        raise NotImplementedError

    def size(self, axis: str) -> str:
        """Return what the size of an axis is called."""
        return axis


class CommandLine(Words):
    """The words of a shell: settings are options."""

    _OPTIONS: Mapping[str, str] = {
        "ignore_arguments": "ignore_arg",
        "ignore_fields": "ignore_field",
        "set_arguments": "set_arg",
    }
    _OPPOSITES: Mapping[str, str] = {"untie": "tie"}

    def name(self, name: str) -> str:
        """Return the option."""
        return "--" + self._OPTIONS.get(name, name).replace("_", "-")

    def given(self, name: str, value: object) -> str:
        """Return the option and its value, quoted; once for each value if there are many."""
        return " ".join(quote(word) for word in self.arguments(name, value))

    def arguments(self, name: str, value: object) -> list[str]:
        """Return the arguments of a command that give a setting its value."""
        option = self.name(name)
        if value is True:
            return [option]
        if value is False:
            return [self.name(self._OPPOSITES[name])]
        return [word for one in as_words(value) for word in (option, one)]


COMMAND_LINE = CommandLine()


class Python(Words):
    """The words of :mod:`flmgrow.api`: settings are arguments of functions."""

    ONLY_COMMANDS = frozenset(
        """
        args_from eod evaluation help jsonl_key max_bad_lines max_lost only_shards private push_to
        rank_timeout scratch sequence_length
        """.split()
    )
    """What commands can be told and functions cannot: it is called as there."""

    def has(self, name: str) -> bool:
        """Whether a function takes it."""
        return name not in self.ONLY_COMMANDS

    def name(self, name: str) -> str:
        """Return the argument."""
        return name if self.has(name) else COMMAND_LINE.name(name)

    def given(self, name: str, value: object) -> str:
        """Return the argument as a call has it."""
        return f"{name}={_literal(value)}" if self.has(name) else COMMAND_LINE.given(name, value)


PYTHON = Python()


class TextPart(Protocol):
    """What a text says differently in different places."""

    def told(self, words: Words) -> str:
        """Return it in these words."""


@dataclass(frozen=True)
class Setting:
    """A setting, by the name that it has in Python, and the value that it is given, if any.

    A value of ``...`` is left to the reader.
    """

    name: str
    value: object = None

    def told(self, words: Words) -> str:
        """Return its name, or the setting as one would give it."""
        return words.name(self.name) if self.value is None else words.given(self.name, self.value)


@dataclass(frozen=True)
class Pass(Setting):
    """The advice to give a setting: it is passed to a function, and said in a file."""

    def told(self, words: Words) -> str:
        """Return the advice."""
        return f"{words.verb} {super().told(words)}"


@dataclass(frozen=True)
class SizeOf:
    """The size of an axis: in a file, the key that says it."""

    SETTINGS: ClassVar[Mapping[str, str]] = {
        "layer": "num_layers",
        "hidden": "hidden_size",
        "ffn": "ffn_hidden_size",
        "kv_group": "num_query_groups",
        "vocab": "vocab_size",
    }
    """The settings that say the sizes of axes."""

    axis: str

    @property
    def name(self) -> str:
        """The setting that says this size; "" if there is none."""
        return self.SETTINGS.get(self.axis, "")

    def told(self, words: Words) -> str:
        """Return what it is called."""
        return words.size(self.axis)


@dataclass(frozen=True, init=False)
class _Told:
    """A value in a sentence, as a formatted string would tell it."""

    value: str

    def __init__(self, value: object) -> None:
        told = value if isinstance(value, str) else format(value, "")
        object.__setattr__(self, "value", told)

    def told(self, words: Words) -> str:
        """Return it in these words."""
        return render(self.value, words)


class Found(_Told):
    """What was found where something else was wanted: part of the sentence, and data."""


class Wanted(_Told):
    """The end of a sentence that says what was found: what was wanted."""

    def told(self, words: Words) -> str:
        """Return it as the end of the sentence."""
        return f", wanted {super().told(words)}"


class Text(str):
    """A string in Python's words that can be rendered in others.

    It can stand wherever a string can. What is made of it by ``+`` and ``join`` is a text again; a
    formatted string is not.
    """

    parts: tuple[str | TextPart, ...]

    def __new__(cls, *parts: str | TextPart) -> "Text":
        """Make a text of strings, texts and other parts."""
        flat = tuple(
            inner for part in parts for inner in (part.parts if isinstance(part, Text) else [part])
        )
        text = super().__new__(cls, "".join(_told(part, PYTHON) for part in flat))
        text.parts = flat
        return text

    def __reduce__(self) -> Any:
        return (Text, self.parts)

    def __add__(self, other: str) -> "Text":
        return Text(self, other)

    def __radd__(self, other: str) -> "Text":
        return Text(other, self)

    def join(self, texts: Iterable[str], /) -> "Text":
        """Return ``texts`` with this between them."""
        parts = [part for text in texts for part in (self, text)]
        return Text(*parts[1:])


def render(text: str, words: Words) -> str:
    """Return ``text`` in these words; a plain string has no others."""
    return "".join(_told(part, words) for part in text.parts) if isinstance(text, Text) else text


def rendered(data: Any, words: Words) -> Any:
    """Return ``data``, which JSON can say, with every text in it in these words."""
    if isinstance(data, str):
        return render(data, words)
    if isinstance(data, Mapping):
        return {key: rendered(value, words) for key, value in data.items()}
    return [rendered(value, words) for value in data] if isinstance(data, list | tuple) else data


def first_part(text: str) -> str | TextPart:
    """Return what ``text`` begins with."""
    return text.parts[0] if isinstance(text, Text) and text.parts else text


def parted(text: str) -> tuple[str, str]:
    """Return a text without what it says at its end that was wanted, and that; "" if nothing."""
    if isinstance(text, Text) and text.parts and isinstance(text.parts[-1], Wanted):
        return Text(*text.parts[:-1]), text.parts[-1].value
    return text, ""


def unlike(name: str, found: object, wanted: object) -> Text:
    """Return the sentence that what has a name is one thing, and should be another."""
    return Text(f"{name} is ", Found(found), Wanted(wanted))


def found_in(text: str) -> list[str]:
    """Return what a text says was found, in Python's words."""
    parts = text.parts if isinstance(text, Text) else ()
    return [part.told(PYTHON) for part in parts if isinstance(part, Found)]


def as_words(value: object) -> list[str]:
    """Return a value as words: one for each of many, ``name=value`` for those with names."""
    if isinstance(value, Mapping):
        return [f"{name}={_plain(one)}" for name, one in value.items()]
    return [_plain(one) for one in value] if isinstance(value, list | tuple) else [_plain(value)]


def to_data(text: str) -> list[Any]:
    """Return a text as JSON can say it."""
    parts = text.parts if isinstance(text, Text) else (text,)
    return [
        part if isinstance(part, str) else {"kind": type(part).__name__, **_jsonable(vars(part))}
        for part in parts
    ]


def from_data(data: list[Any]) -> Text:
    """Return the text that ``to_data`` described."""
    kinds: dict[str, type[Any]] = {
        kind.__name__: kind for kind in (Setting, Pass, SizeOf, Found, Wanted)
    }
    return Text(*(part if isinstance(part, str) else _part(kinds, **part) for part in data))


def _part(kinds: Mapping[str, type[Any]], kind: str, **fields: object) -> Any:
    return kinds[kind](**fields)


def _told(part: str | TextPart, words: Words) -> str:
    return part if isinstance(part, str) else part.told(words)


def _jsonable(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(name): _jsonable(one) for name, one in value.items()}
    if isinstance(value, list | tuple):
        return [_jsonable(one) for one in value]
    return value if isinstance(value, bool | int | float | None) else _plain(value)


def _plain(value: object) -> str:
    return "..." if value is ... else str(value)


def _literal(value: object) -> str:
    """Return a value as Python's source has it."""
    if isinstance(value, str | PurePath):
        return repr(str(value))
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{name!r}: {_literal(one)}" for name, one in value.items()) + "}"
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(_literal, value))}]"
    return "..." if value is ... else repr(value)
