"""What one rank meets alone, all must meet: the others would wait for it for ever.

Where ranks only compute or look at the disk, :func:`together` lets all of them hear of an error.
In the middle of a step they cannot stop to listen: there a :class:`Postponed` keeps the error, and
the step's own sum over all ranks carries the news that there is one.

News takes a channel of its own, which is patient: while a few ranks write a large checkpoint the
others wait there, longer than a sum of gradients may take before something must be wrong.
"""

from collections.abc import Callable
from datetime import timedelta
from typing import Any, TypeVar

import torch

from flmgrow.errors import FlmgrowError

Result = TypeVar("Result")

PATIENCE = timedelta(days=1)

_channel: list[Any] = []
_LOST = ("Connection closed by peer", "Connection reset by peer", "Broken pipe")


def open_channel() -> None:
    """Open the channel for news, on all ranks at once, after they have met."""
    _channel[:] = [torch.distributed.new_group(backend="gloo", timeout=PATIENCE)]


def close_channel() -> None:
    """Forget the channel; it ends with torch's process groups."""
    _channel.clear()


def together(do: Callable[[], Result]) -> Result:
    """Run ``do`` on every rank; if it fails on one, all raise the error of the first that failed.

    Other errors than flmgrow's own are left to end their rank, and the launcher to end the rest.
    """
    own: tuple[type[FlmgrowError], str, str] | None = None
    result: Any = None
    try:
        result = do()
    except FlmgrowError as error:
        own = type(error), error.message, error.hint
    met: list[Any] = [None] * torch.distributed.get_world_size()
    torch.distributed.all_gather_object(met, own, group=_channel[0])
    if failed := next((each for each in met if each is not None), None):
        kind, message, hint = failed
        raise kind(message, hint)
    done: Result = result
    return done


class Postponed:
    """The first error that this rank has met and not raised yet, if any."""

    def __init__(self) -> None:
        self.error: FlmgrowError | None = None

    def attempt(self, do: Callable[[], Result], otherwise: Result) -> Result:
        """Return what ``do`` returns, or ``otherwise`` if it fails; the error is kept."""
        try:
            return do()
        except FlmgrowError as error:
            self.error = self.error or error
            return otherwise

    def raise_together(self) -> None:
        """Raise, on all ranks, what any of them has kept. All must call it."""
        together(self._raise)

    def _raise(self) -> None:
        if self.error is not None:
            raise self.error


def is_lost_rank(error: RuntimeError) -> bool:
    """Whether ``error`` says no more than that another rank has ended."""
    return isinstance(error, torch.distributed.DistError) or any(
        sign in str(error) for sign in _LOST
    )
