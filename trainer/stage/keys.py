"""Telling of a refusal in the keys of the file that was written.

Whoever wrote a stage file or a schedule wants to hear what is wrong with it in its own keys. What
refuses it is what every command uses, and knows of no file; its texts are rendered in a file's
words here.
"""

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from flmgrow.errors import FlmgrowError, UsageError
from flmgrow.text import COMMAND_LINE, Setting, SizeOf, TextPart, Words, as_words, first_part
from flmgrow.trainer.stage.beginning import CheckpointSection
from flmgrow.trainer.stage.model import ModelSection
from flmgrow.trainer.stage.training import LayoutSection

KEYS: Mapping[str, str] = {
    **{name: f"checkpoint.{name}" for name in CheckpointSection.model_fields},
    **{name: f"model.{name}" for name in ModelSection.model_fields},
    **{name: f"layout.{name}" for name in LayoutSection.model_fields},
    **{name: f"data.{name}" for name in ("tokenizer", "eod", "sequence_length")},
}
"""A stage file's keys by the names of settings."""

_NO_OPTIMIZER = ("no_optimizer", "checkpoint.begin: anew")
"""What a command leaves out, a stage does not begin with."""


class FileWords(Words):
    """The words of a file with these keys; a setting that it has not is a command's option."""

    verb = "say"

    def __init__(self, keys: Mapping[str, str] = KEYS) -> None:
        self._keys = keys

    def has(self, name: str) -> bool:
        """Whether the file has a key for a setting."""
        return name in self._keys

    def name(self, name: str) -> str:
        """Return the key."""
        return self._keys.get(name) or COMMAND_LINE.name(name)

    def given(self, name: str, value: object) -> str:
        """Return the key and its value, as they stand in the file."""
        if name == _NO_OPTIMIZER[0]:
            return _NO_OPTIMIZER[1]
        if not self.has(name):
            return COMMAND_LINE.given(name, value)
        if isinstance(value, bool | Mapping | list):
            value = json.dumps(value if isinstance(value, bool) else as_words(value))
        return f"{self.name(name)}: {value}"

    def size(self, axis: str) -> str:
        """Return the key of the setting that says an axis' size, if there is one."""
        return self.name(SizeOf(axis).name) if SizeOf(axis).name else axis

    def begins_with_key(self, text: str) -> bool:
        """Whether a text begins with a key of the file."""
        part: str | TextPart = first_part(text)
        if isinstance(part, SizeOf):
            return bool(part.name)
        return isinstance(part, Setting) and self.has(part.name)


STAGE_FILE = FileWords()


@contextmanager
def told_of(path: Path, *where: str) -> Iterator[None]:
    """Let a UsageError inside be of the file ``path``, and of ``where`` in it."""
    try:
        yield
    except UsageError as error:
        raise error.relative_to(path).at(path, *where) from None


@contextmanager
def in_keys(section: str, words: FileWords = STAGE_FILE) -> Iterator[None]:
    """Let a UsageError inside begin with a key of a file; ``section`` is it where it names none."""
    try:
        yield
    except UsageError as error:
        named = not error.where and words.begins_with_key(error.what)
        raise (error if named else error.at(section)).in_words(words) from None


@contextmanager
def in_words(words: Words = STAGE_FILE) -> Iterator[None]:
    """Let what is refused inside be told in these words."""
    try:
        yield
    except FlmgrowError as error:
        raise error.in_words(words) from None
