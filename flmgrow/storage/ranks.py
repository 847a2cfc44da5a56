"""What ranks of a command do together, whether there are many or one.

All ranks call the same things in the same order. One rank alone is no special case for its callers:
:class:`Alone` exchanges with nobody.
"""

from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Protocol, TypeVar

from flmgrow.errors import StorageError
from flmgrow.storage import folders
from flmgrow.storage.launch import Launch, launch_folder
from flmgrow.storage.sign import is_held, read_sign, this_machine
from flmgrow.storage.world import World

T = TypeVar("T")


class Ranks(Protocol):
    """The ranks of one command. What is exchanged must be plain data, as JSON holds it."""

    @property
    def world(self) -> World:
        """Which of them this one is."""

    @property
    def paths(self) -> Collection[Path]:
        """The files in which they meet."""

    def meet(self, plan: str) -> None:
        """Wait until all are there, and have the same ``plan``; nothing else comes before it.

        Raises:
            LostRankError: Another rank is lost.
            UsageError: What was asked for cannot be.
        """

    def exchange(self, value: Any, join: Callable[[list[Any]], T]) -> T:
        """Give ``value``; return what ``join`` makes on rank 0 of all values, by rank.

        Raises:
            LostRankError: Another rank is lost.
            FlmgrowError: The error that another rank has met.
        """

    def report(self, nbytes: int) -> None:
        """Say that so many more bytes are done.

        Raises:
            FlmgrowError: The error that another rank has met.
        """

    def watch(self, progress: Callable[[int], None]) -> None:
        """Let rank 0 hear of the bytes that other ranks report."""

    def stop(self, error: BaseException | None) -> bool:
        """Let the others know that this one has stopped for ``error``, or is done; never raises.

        Rank 0 waits for the others. Returns whether all have stopped.
        """


class Alone:
    """A command of one process."""

    world = World()
    paths: Collection[Path] = ()

    def meet(self, plan: str) -> None:
        """Do nothing: there are no other ranks."""

    def exchange(self, value: Any, join: Callable[[list[Any]], T]) -> T:
        """Join the one value."""
        return join([value])

    def report(self, nbytes: int) -> None:
        """Do nothing: no other rank listens."""

    def watch(self, progress: Callable[[int], None]) -> None:
        """Do nothing: no other rank reports."""

    def stop(self, error: BaseException | None) -> bool:
        """Return True: no other rank is waiting."""
        return True


ALONE = Alone()


def first_of(values: Sequence[T]) -> T:
    """Return what rank 0 gave."""
    return values[0]


def flattened(values: Sequence[Sequence[T]]) -> list[T]:
    """Return what all ranks gave, as one list."""
    return [each for value in values for each in value]


@contextmanager
def ranks_in(folder: Path, world: World) -> Iterator[Ranks]:
    """Give the ranks of ``world``, which meet in ``folder``; rank 0 makes it, private to its user.

    After the block all have stopped, for the error that one of them has met, if any.

    Raises:
        StorageError: The file system failed.
        LostRankError: Another rank is lost.
    """
    if world.first:
        folders.make_private_folder(folder)
    if world.size == 1:
        yield ALONE
        return
    launch = Launch(launch_folder(folder, world), world)
    error: BaseException | None = None
    try:
        yield launch
    except BaseException as met:
        error = met
        raise
    finally:
        launch.stop(error)


@contextmanager
def meeting(folder: Path, world: World) -> Iterator[Ranks]:
    """Give the ranks of ``world``, which meet in ``folder`` as :func:`ranks_in` says; after the
    block it is gone, and what killed launches have left in it. One rank alone meets nobody, and
    needs no folder.
    """
    if world.size == 1:
        yield ALONE
        return
    try:
        with ranks_in(folder, world) as ranks:
            yield ranks
    finally:
        if world.first:
            with suppress(StorageError, OSError):
                folders.remove_tree(launch_folder(folder, world))
                _sweep(folder)
                folder.rmdir()  # unless somebody else needs it


def _sweep(folder: Path) -> None:
    """Remove the folders of launches whose ranks, all of this machine, are there no more."""
    for launch in folder.glob("launch-*"):
        signs = [*launch.glob("rank.*")]
        if signs and not any(map(_may_live, signs)):
            folders.remove_tree(launch)


def _may_live(sign: Path) -> bool:
    """Whether a rank may be there: its process is, or its sign names another machine, or none."""
    return is_held(sign) or (read_sign(sign) or {}).get("host") != this_machine()
