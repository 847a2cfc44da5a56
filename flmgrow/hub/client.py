"""Talking to the Hugging Face Hub, with every failure as one of flmgrow's errors.

Everything that is said to the Hub goes through here, and everything that comes back.
``huggingface_hub`` talks to the server; this module decides what a person sees of it: one line of
our own words by class of failure, what the server said only after :class:`Redactor` let it pass,
and the library's own warnings in the same way. Requests that may be repeated are.
"""

import logging
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, TypeVar

from flmgrow import __version__
from flmgrow.errors import FlmgrowError, HubError, StorageError, UsageError
from flmgrow.hub.redaction import Redactor
from flmgrow.text import Setting, Text

if TYPE_CHECKING:
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError

T = TypeVar("T")

AGAIN = "run the same command again: what was transferred stays"
LOGIN = "set HF_TOKEN, or log in once with hf auth login"
WAITS = (1.0, 2.0, 4.0, 8.0)
LONGEST_WAIT = 60.0
_PASSING = (429, 500, 502, 503, 504)
_MISSING = "HF_HUB_OFFLINE is set, and the cache does not hold it"

_STATUS = {
    400: ("the Hub refused the request", "is the name right, and the model card valid?"),
    401: ("the Hub wants a valid token", LOGIN),
    403: ("the token does not allow this", "use one with write access to the organization"),
    404: (
        "no such repository or revision, or the token may not see it",
        f"check the name; for a private one {LOGIN}",
    ),
    409: ("somebody else's commit came first", f"look at it, then {AGAIN}"),
    412: ("somebody else's commit came first", f"look at it, then {AGAIN}"),
    413: (
        "the Hub takes no file that large",
        Text("export with a smaller ", Setting("shard_size")),
    ),
    429: ("too many requests", f"wait a while, then {AGAIN}"),
}
"""What each answer of the server means, and what to do."""


class _Notes(logging.Handler):
    """Prints the library's warnings as notes, redacted."""

    def __init__(self, redact: Redactor) -> None:
        super().__init__()
        self.redact = redact

    def emit(self, record: logging.LogRecord) -> None:
        print(f"note: {self.redact(record.getMessage())}", file=sys.stderr)


@contextmanager
def _redacted_output(redact: Redactor) -> Iterator[None]:
    """Let nothing the library logs, warns of or draws reach the terminal but through ``redact``."""
    from huggingface_hub.utils.tqdm import (
        are_progress_bars_disabled,
        disable_progress_bars,
        enable_progress_bars,
    )

    def show(message: Warning | str, *_: object) -> None:
        print(f"note: {redact(str(message))}", file=sys.stderr)

    logger = logging.getLogger("huggingface_hub")
    before, had_bars = (logger.handlers, logger.propagate), not are_progress_bars_disabled()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # deprecations inside the library
        warnings.simplefilter("always", UserWarning)
        warnings.showwarning = show  # type: ignore[assignment]  # takes less than it may be given
        logger.handlers, logger.propagate = [_Notes(redact)], False
        if not sys.stderr.isatty():
            disable_progress_bars()
        try:
            yield
        finally:
            logger.handlers, logger.propagate = before
            if had_bars:
                enable_progress_bars()


@contextmanager
def session(name: object) -> "Iterator[HfApi]":
    """Give the library's API, to speak of ``name``; whatever fails in it becomes an error of ours.

    Raises:
        UsageError: Without the library.
        HubError: The file system failed.
        StorageError: The file system failed.
    """
    try:
        from huggingface_hub import HfApi, get_token
    except ImportError:
        raise UsageError(
            "the package huggingface_hub is not installed", "pip install 'flmgrow[hub]'", where=name
        ) from None
    redact = Redactor(None)
    try:
        redact = Redactor(get_token())
        with _redacted_output(redact):
            yield HfApi(library_name="flmgrow", library_version=__version__)
    except FlmgrowError:
        raise
    except Exception as error:  # of any kind: the text and the frames of each may hold the token
        raise _told(str(name), error, redact) from None


def _answer(error: BaseException) -> "HfHubHTTPError | None":
    """Return the server's answer that an error, or what caused it, was raised for, if any."""
    from huggingface_hub.errors import HfHubHTTPError

    cause: BaseException | None = error
    while cause is not None and not isinstance(cause, HfHubHTTPError):
        cause = cause.__cause__
    return cause


def _told(name: str, error: Exception, redact: Redactor) -> FlmgrowError:
    """Return the error that tells a person about one of the library's."""
    from huggingface_hub.constants import is_offline_mode

    answer = _answer(error)
    if answer is not None:
        status = answer.response.status_code
        failed = "the Hub failed" if status >= 500 else "the Hub refused the request"
        meaning, hint = _STATUS.get(status, (failed, AGAIN))
        said = redact(answer.server_message or "")
        return HubError(f"{name}: {status}: {meaning}" + (f": {said}" if said else ""), hint)
    if is_offline_mode():
        return HubError(_MISSING, "unset it where there is a network", where=name)
    if isinstance(error, OSError) and error.errno is not None and error.filename is not None:
        return StorageError(f"{redact(str(error.filename))}: {redact(error.strerror or '')}", AGAIN)
    cause = error if error.__cause__ is None else error.__cause__
    said = redact(f"{type(cause).__name__}: {cause}")
    return HubError(f"the exchange with the Hub broke off: {said}", AGAIN, where=name)


def patiently(call: Callable[[], T]) -> T:
    """Return what ``call`` returns, repeated while the Hub asks for patience; it must be
    repeatable.
    """
    from huggingface_hub.errors import HfHubHTTPError

    for wait in WAITS:
        try:
            return call()
        except HfHubHTTPError as error:
            if error.response.status_code not in _PASSING:
                raise
            asked = error.response.headers.get("Retry-After", "")
            seconds = float(asked) if asked.isdigit() else wait
            if seconds > LONGEST_WAIT:
                raise
            time.sleep(seconds)
    return call()
