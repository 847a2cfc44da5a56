"""Outputs, wherever they are: folders on a disk, and in object stores.

Who writes a checkpoint says what goes into it; how it becomes whole is the business of
:class:`OutputFolder` or :class:`RemoteOutput`, which are used alike.
"""

from collections.abc import Mapping
from pathlib import Path

from flmgrow.errors import BadCheckpointError, UsageError
from flmgrow.storage import hidden, remote_output
from flmgrow.storage.marker import is_marked
from flmgrow.storage.output import OutputFolder
from flmgrow.storage.remote.addresses import is_remote
from flmgrow.storage.remote.path import open_folder, remote_path
from flmgrow.storage.remote_output import RemoteOutput
from flmgrow.storage.world import ALONE, World

Output = OutputFolder | RemoteOutput


def begin_output(
    path: Path,
    plan: Mapping[str, object],
    *,
    restart: bool = False,
    double_check: bool = True,
    world: World = ALONE,
) -> Output:
    """Return the output at ``path``, begun or resumed: see :class:`OutputFolder`.

    A store checks itself what it is sent: there is no ``double_check``.
    """
    if is_remote(path):
        return RemoteOutput(path, plan, restart=restart, world=world)
    return OutputFolder(path, plan, restart=restart, double_check=double_check, world=world)


def check_results_folder(path: Path) -> None:
    """Raise UsageError unless ``path`` is, or may become, a folder of this machine.

    For what is written as it comes, and read again: runs, searches and evaluations.
    """
    if is_remote(path):
        raise UsageError(
            "is in an object store",
            "name a folder of this machine, and copy it when all is done",
            where=named_output(path),
            wanted="a folder of this machine",
        )
    if path.exists() and not path.is_dir():
        raise UsageError("is no folder", "name one, or one that is not there yet", where=path)


def named_output(path: Path) -> Path:
    """Return ``path`` so that its text is what it was given as.

    Raises:
        UsageError: What was asked for cannot be.
    """
    return remote_path(path) if is_remote(path) else path


def finished_output(path: Path) -> Path | None:
    """Return where an output at ``path`` can be read, if there may be one.

    Raises:
        StorageError: The file system failed.
    """
    if not is_remote(path):
        return None if is_marked(path) else path
    try:
        return open_folder(path)
    except BadCheckpointError:
        return None


def unfinished_place(path: Path) -> Path:
    """Return where the files of a half-done output lie."""
    return path if is_remote(path) else hidden.hidden_folder(path) / "data"


def clear_leftovers(path: Path) -> None:
    """Remove what a run that made the output could not.

    Raises:
        OutputExistsError: If another run is at it.
        OSError: The file system failed.
        StorageError: The file system failed.
    """
    if is_remote(path):
        remote_output.clear_leftovers(path)
    else:
        hidden.clear_leftovers(path)
