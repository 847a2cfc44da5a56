"""The errors of flmgrow: a message on one line, a hint, and the exit code of each kind.

A user's mistake or a damaged file must end in one clear line, never in a traceback. Every refusal
in flmgrow is a :class:`FlmgrowError`: what was found and what was wanted, where (file, then
tensor), and a hint at what to do. The command line prints the two lines and leaves with the error's
exit code; nothing else decides on exit codes.
"""

import re
import sys
from typing import ClassVar

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
    for pattern, blot in _CREDENTIALS:
        text = pattern.sub(blot, text)
    escaped = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
    return escaped if len(escaped) <= MAX_LENGTH else f"{escaped[:600]} ... {escaped[-200:]}"


class FlmgrowError(Exception):
    """Something the user can act on. ``str(error)`` is the message, ``error.hint`` the way out.

    ``told``: another rank of the same command tells it.
    """

    exit_code: ClassVar[int] = 3
    told = False

    def __init__(self, message: str, hint: str = "") -> None:
        self.message = printable(message)
        self.hint = printable(hint)
        super().__init__(self.message)


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


class LostRankError(FlmgrowError):
    """Another rank of a run has ended, or cannot be reached; the same command resumes."""

    exit_code = 8


class NotProvenError(FlmgrowError):
    """Verification found no difference, but evidence that was asked for cannot be had."""

    exit_code = 9


def as_storage_error(error: OSError, where: str) -> StorageError:
    """Return what the system said, about the file it named; ``where`` if it named none."""
    return StorageError(f"{error.filename or where}: {error.strerror or error}")


def tell(error: FlmgrowError) -> None:
    """Print the two lines of an error on stderr."""
    print(f"error: {error.message}", file=sys.stderr)
    if error.hint:
        print(f"hint: {error.hint}", file=sys.stderr, flush=True)
