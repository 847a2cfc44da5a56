"""A command that several ranks share: one of them speaks."""

import contextlib
import functools
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from flmgrow.cli.interruption import be_quiet
from flmgrow.cli.options import RUNNING
from flmgrow.cli.printing import note
from flmgrow.errors import FlmgrowError, LostRankError, UsageError
from flmgrow.hub.names import is_on_hub
from flmgrow.storage.launch import Launch, launch_folder
from flmgrow.storage.meeting_place import meeting_place
from flmgrow.storage.ranks import Ranks, meeting
from flmgrow.storage.world import PATIENCE, World, find_world

RankTimeout = Annotated[
    float,
    typer.Option(
        "--rank-timeout",
        metavar="SECONDS",
        help="Of a command started by torchrun or srun: how long a rank may give no sign of life.",
        rich_help_panel=RUNNING,
    ),
]
Scratch = Annotated[
    Path | None,
    typer.Option(
        metavar="FOLDER",
        help="Of a command started by torchrun or srun: where its ranks meet, if not beside DST;"
        " for an object store, where several machines see it.",
        rich_help_panel=RUNNING,
    ),
]

HAND_OVER = 30.0
"""Seconds in which rank 0 must have begun to hear of an error that another rank met before."""


def this_world(patience: float = PATIENCE, scratch: Path | None = None) -> World:
    """Return which rank this process is; ranks meet in ``scratch``, if that is given.

    Raises:
        UsageError: For variables that contradict.
    """
    return replace(find_world(os.environ, patience), scratch=scratch)


def in_ranks(command: Callable[..., None]) -> Callable[..., None]:
    """Return ``command`` so that ranks may share it, which meet beside its ``dst``.

    All but rank 0 are quiet. An error that another rank meets before they have met is told by rank
    0 as well, if it is there.
    """

    @functools.wraps(command)
    def called(**given: object) -> None:
        world = this_world()
        if world.first:
            if world.note:
                note(world.note)
            command(**given)
            return
        be_quiet()
        try:
            with _silence():
                command(**given)
        except LostRankError:
            raise  # there is nobody to hand it over to
        except FlmgrowError as error:
            if not error.told:
                _hand_over(error, world, _place(given, world))
            raise

    return called


@contextlib.contextmanager
def _silence() -> Iterator[None]:
    with (
        Path(os.devnull).open("w", encoding="utf-8") as nowhere,
        contextlib.redirect_stdout(nowhere),
        contextlib.redirect_stderr(nowhere),
    ):
        yield


def meeting_beside(path: Path, world: World) -> contextlib.AbstractContextManager[Ranks]:
    """Give the ranks of ``world``, which meet beside ``path`` or in a folder they were given."""
    return meeting(meeting_place(path, world) if world.size > 1 else path, world)


def _place(given: Mapping[str, object], world: World) -> Path | None:
    """Return where a command's ranks meet; None if that cannot be told before it has begun."""
    path, scratch = given.get("dst") or given.get("out") or given.get("src"), given.get("scratch")
    if not isinstance(path, Path) or is_on_hub(path):
        return None
    with contextlib.suppress(UsageError):
        return meeting_place(
            path, replace(world, scratch=scratch if isinstance(scratch, Path) else None)
        )
    return None


def _hand_over(error: FlmgrowError, world: World, place: Path | None) -> None:
    """Let rank 0 tell of ``error``; if it is not there, say whose it is."""
    if place is not None:
        short = replace(world, patience=min(HAND_OVER, world.patience))
        with contextlib.suppress(FlmgrowError):
            Launch(launch_folder(place, short), short).stop(error)
    if not error.told:
        raise error.at(f"rank {world.rank}") from None
