"""The errors of flmgrow: a message on one line, a hint, and the exit code of each kind.

A user's mistake or a damaged file must end in one clear line, never in a traceback. Every refusal
in flmgrow is a :class:`FlmgrowError`: where (file, then tensor), what was found and what was
wanted, and a hint at what to do. They are texts, which call settings by the names that their
reader knows, and in which the value that was found is a part of its own (:mod:`flmgrow.text`): a
program reads attributes, and no message. The command line prints the two lines and leaves with the
error's exit code; nothing else decides on exit codes.
"""

import re
import sys
from typing import ClassVar, Self

from flmgrow.text import (
    PYTHON,
    Setting,
    SizeOf,
    Text,
    Wanted,
    Words,
    found_in,
    parted,
    render,
)

MAX_LENGTH = 900
_CREDENTIALS = (
    # One slash is what pathlib leaves of two. hf://NAME@REVISION is no credential. A password may
    # have a slash or an @ in it: what follows the colon is no port then.
    (re.compile(r"(?i)\b([a-z][\w+.-]*:/{1,3})[^\s/@:]*:(?!\d*(?:[/?#\s]|$))\S*@"), r"\1***@"),
    (re.compile(r"(?i)\b(https?:/{1,3})[^\s/@]+@"), r"\1***@"),
    (
        re.compile(
            r"(?i)([?&#;][\w-]*(?:token|secret|passw(?:or)?d|signature|key|sig)=)[^\s&#;'\"]+"
        ),
        r"\1***",
    ),
    (re.compile(r"(?i)\b(hf:/{1,3})(?:hf|api_org)_\w+@"), r"\1***@"),
    (re.compile(r"\b(?:hf|api_org)_[A-Za-z0-9]{20,}"), "***"),
)


def printable(text: str) -> str:
    """Return ``text`` on one line, of bounded length, with unprintable characters escaped.

    Names come from files, and a hostile name must not be able to drive the user's terminal. And
    what was typed is shown again: a token or a password in an address is not.
    """
    return _shortened(_escaped(text))


def _shortened(text: str) -> str:
    return text if len(text) <= MAX_LENGTH else f"{text[:600]} ... {text[-200:]}"


def _escaped(text: str) -> str:
    if isinstance(text, Text):
        return Text(*(_escaped(part) if isinstance(part, str) else part for part in text.parts))
    for pattern, blot in _CREDENTIALS:
        text = pattern.sub(blot, text)
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def _texts(values: tuple[object, ...]) -> tuple[str, ...]:
    return tuple(_escaped(one if isinstance(one, str) else str(one)) for one in values)


def _field(text: str) -> str:
    """Return the first setting that a text names; "" if it names none."""
    parts = text.parts if isinstance(text, Text) else ()
    return next((part.name for part in parts if isinstance(part, Setting | SizeOf)), "")


def shown(text: str, words: Words) -> str:
    """Return ``text`` in these words, printable."""
    return printable(render(text, words))


class FlmgrowError(Exception):
    """Something the user can act on: ``what`` is wrong, ``where``, and a ``hint`` at the way out.

    ``wanted`` is what should have been there, if that is not plain; it may also stand at the end of
    ``what``. ``found`` is the value that was there instead, and ``field`` the setting that is at
    fault, by its name in Python; each is "" if ``what`` tells of none. ``where`` is a place, or a
    tuple of places from the outermost inwards: file, then tensor. All of it but the hint is the
    ``message``; ``str(error)`` is that in Python's words. ``told``: another rank of the same
    command tells it.
    """

    exit_code: ClassVar[int] = 3
    told = False

    def __init__(self, what: str, hint: str = "", where: object = (), wanted: object = "") -> None:
        super().__init__(what, hint, where, wanted)
        what, last = parted(what)
        self.what, self.hint = _escaped(what), _escaped(hint)
        (self.wanted,) = _texts((last if wanted == "" else wanted,))
        self.where = _texts(where if isinstance(where, tuple) else (where,))
        self.found = _escaped(", ".join(found_in(what)))
        self.field = next(filter(None, map(_field, (what, *self.where))), "")

    def __str__(self) -> str:
        return shown(self._whole, PYTHON)

    @property
    def message(self) -> str:
        """Where, what was found, and what was wanted, of bounded length."""
        return _shortened(self._whole)

    @property
    def _whole(self) -> Text:
        wanted = Text(Wanted(self.wanted)) if self.wanted else ""
        return Text(Text(": ").join((*self.where, self.what)), wanted)

    @classmethod
    def of(cls, error: "FlmgrowError") -> Self:
        """Return ``error`` as one of this kind."""
        made = cls(error.what, error.hint, error.where, error.wanted)
        return made._with(found=error.found, field=error.field)

    def at(self, *where: object) -> Self:
        """Return the same error, of a place that lies in ``where``."""
        return self._with(where=(*_texts(where), *self.where))

    def relative_to(self, place: object) -> Self:
        """Return the same error with its place as seen from ``place``, if it lies there."""
        inside = self.where[:1] == _texts((place,))
        return self._with(where=self.where[1:]) if inside else self

    def with_hint(self, hint: str) -> Self:
        """Return the same error with another hint."""
        return self._with(hint=_escaped(hint))

    def with_more_hint(self, more: str) -> Self:
        """Return the same error with ``more`` at the end of its hint."""
        return self.with_hint(Text("; ").join(filter(None, (self.hint, more))))

    def with_more(self, more: str) -> Self:
        """Return the same error with ``more`` at the end of its message."""
        last = "wanted" if self.wanted else "what"
        return self._with(**{last: Text(getattr(self, last), _escaped(more))})

    def in_words(self, words: Words) -> Self:
        """Return the same error in the words of whoever it is meant for."""
        texts = {name: render(getattr(self, name), words) for name in ("what", "wanted", "hint")}
        return self._with(**texts, where=tuple(render(place, words) for place in self.where))

    def _with(self, **fields: object) -> Self:
        changed = type(self).__new__(type(self), *self.args)
        vars(changed).update({**vars(self), **fields})
        return changed

    def lines(self, words: Words) -> list[str]:
        """Return the line of the error, and that of its hint if it has one."""
        told = [f"error: {shown(self._whole, words)}"]
        return [*told, f"hint: {shown(self.hint, words)}"] if self.hint else told


class DifferenceFoundError(FlmgrowError):
    """Verification ran, and the two models differ."""

    exit_code = 1


class UsageError(FlmgrowError):
    """The request cannot be carried out as asked: wrong options, or an impossible target."""

    exit_code = 2


class BadCheckpointError(FlmgrowError):
    """An input is damaged, unsafe, incomplete or not understood."""

    exit_code = 3


class IncompleteCheckpointError(BadCheckpointError):
    """A part of a checkpoint is missing that others of its kind have: a copy was broken off."""


class BadDataError(FlmgrowError):
    """A text, a corpus or a tokenizer's file is damaged, incomplete or not understood."""

    exit_code = 3


class StorageError(FlmgrowError):
    """The file system failed (full, read-only, input/output error); the same command resumes."""

    exit_code = 4


class OutputExistsError(FlmgrowError):
    """The output exists, is being written by another run, or holds a different half-done run."""

    exit_code = 5


class HubError(FlmgrowError):
    """The Hub refused or the network failed; what was transferred stays."""

    exit_code = 6


class DivergenceError(FlmgrowError):
    """Training was stopped: the loss or the gradient is not finite, or the loss has jumped."""

    exit_code = 7


class GrowthDivergedError(DivergenceError):
    """Training was stopped so soon after a model grew in memory that the growth is to blame."""


class SpikeError(DivergenceError):
    """Training has diverged, and was taken back to before the batches that led to it."""


class LostRankError(FlmgrowError):
    """Another rank of a run has ended, or cannot be reached; the same command resumes."""

    exit_code = 8


class NotProvenError(FlmgrowError):
    """Verification found no difference, but evidence that was asked for cannot be had."""

    exit_code = 9


def as_storage_error(error: OSError, where: str) -> StorageError:
    """Return what the system said, about the file it named; ``where`` if it named none."""
    return StorageError(error.strerror or str(error), where=str(error.filename or where))


def tell(error: FlmgrowError, words: Words) -> None:
    """Print the two lines of an error on stderr."""
    print("\n".join(error.lines(words)), file=sys.stderr, flush=True)
