"""A command that several ranks share: one of them speaks."""

import contextlib
import functools
import os
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

from flmgrow.cli.interruption import be_quiet
from flmgrow.errors import FlmgrowError
from flmgrow.storage.launch import Launch, launch_folder
from flmgrow.storage.output import hidden_folder
from flmgrow.storage.world import PATIENCE, World, find_world

HAND_OVER = 30.0
"""Seconds in which rank 0 must have begun to hear of an error that another rank met before."""


def this_world(patience: float = PATIENCE) -> World:
    """Return which rank this process is. Raises UsageError for variables that contradict."""
    return find_world(os.environ, patience)


def in_ranks(command: Callable[..., None]) -> Callable[..., None]:
    """Return ``command``, which has a parameter ``dst``, so that ranks may share it.

    All but rank 0 are quiet. An error that another rank meets before they have met is told by rank
    0 as well, if it is there.
    """

    @functools.wraps(command)
    def called(**given: object) -> None:
        world = this_world()
        if world.first:
            if world.note:
                print(f"note: {world.note}", file=sys.stderr)
            command(**given)
            return
        be_quiet()
        try:
            with _silence():
                command(**given)
        except FlmgrowError as error:
            if not error.told:
                _hand_over(error, world, given["dst"])
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


def _hand_over(error: FlmgrowError, world: World, destination: object) -> None:
    """Let rank 0 tell of ``error``; if it is not there, say whose it is."""
    if isinstance(destination, Path):
        short = replace(world, patience=min(HAND_OVER, world.patience))
        with contextlib.suppress(FlmgrowError):
            folder = hidden_folder(Path(os.path.realpath(destination)))
            Launch(launch_folder(folder, short), short).stop(error)
    if not error.told:
        raise type(error)(f"rank {world.rank}: {error.message}", error.hint) from None
