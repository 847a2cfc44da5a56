"""Bringing all ranks to one result or one error.

What one rank meets alone, all must meet: the others would wait for it for ever. Where ranks only
compute or look at the disk, :func:`together` lets all of them hear of an error. In the middle of a
step they cannot stop to listen: there a :class:`Postponed` keeps the error, and the step's own sum
over all ranks carries the news that there is one.

News takes a channel of its own, which is patient: while a few ranks write a large checkpoint the
others wait there, longer than a sum of gradients may take before something must be wrong.
"""

from collections.abc import Callable, Mapping
from datetime import timedelta
from typing import Any, TypeVar

import torch

from flmgrow.errors import FlmgrowError, UsageError, as_storage_error

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

    Other errors than flmgrow's own and the system's are left to end their rank, and the launcher to
    end the rest.
    """
    result, own = _attempted(do, None)
    met = gathered(own and (type(own), own.what, own.hint, own.where, own.wanted))
    if failed := next((each for each in met if each is not None), None):
        kind, *what = failed
        raise kind(*what)
    done: Result = result
    return done


def check_alike(found: Mapping[str, object]) -> None:
    """Raise UsageError, on all ranks, unless all of them have ``found`` the same."""
    first, *others = gathered(dict(found))
    for rank, other in enumerate(others, 1):
        names = sorted(first.keys() | other.keys())
        if differing := [name for name in names if other.get(name) != first.get(name)]:
            name = differing[0]
            raise UsageError(
                f"rank {rank}: {name} is {other.get(name)}, rank 0 has {first.get(name)}",
                "all ranks need the same files and packages: let every node see them",
            )


def gathered(own: object) -> list[Any]:
    """Return what every rank has, on every rank."""
    met: list[Any] = [None] * torch.distributed.get_world_size()
    torch.distributed.all_gather_object(met, own, group=_channel[0])
    return met


class NewsWire:
    """Carries flat tensors on the host from rank to rank, by the channel for news."""

    def send(self, values: torch.Tensor, rank: int, tag: int) -> None:
        """Send a flat tensor (elements,) to a rank, which must receive it by the same tag."""
        torch.distributed.send(values, rank, group=_channel[0], tag=tag)

    def receive(self, values: torch.Tensor, rank: int, tag: int) -> None:
        """Fill a flat tensor (elements,) with what a rank sends: as many, alike."""
        torch.distributed.recv(values, rank, group=_channel[0], tag=tag)


def summed(numbers: list[float]) -> list[float]:
    """Return the sums of ``numbers`` over all ranks, by the channel that gradients take."""
    device: Any = torch.cuda.current_device()
    values = torch.tensor(numbers, dtype=torch.float64, device=device)
    torch.distributed.all_reduce(values)
    result: list[float] = values.tolist()
    return result


def _attempted(do: Callable[[], Result], otherwise: Any) -> tuple[Any, FlmgrowError | None]:
    """Return what ``do`` returns, or ``otherwise`` and the error."""
    try:
        return do(), None
    except FlmgrowError as error:
        return otherwise, error
    except OSError as error:
        return otherwise, as_storage_error(error, "a file")


class Postponed:
    """The first error that this rank has met and not raised yet, if any."""

    def __init__(self) -> None:
        self.error: FlmgrowError | None = None

    def attempt(self, do: Callable[[], Result], otherwise: Result) -> Result:
        """Return what ``do`` returns, or ``otherwise`` if it fails; the error is kept."""
        result, error = _attempted(do, otherwise)
        self.error = self.error or error
        done: Result = result
        return done

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
