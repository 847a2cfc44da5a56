"""What marks an output that is written where it will stay, until it is whole.

Most mounts of object stores cannot rename a folder, some not even a file: there, nothing can appear
whole. So the output's folder is made first, with ``.flmgrow/plan.json`` in it, everything is
written in place, and the commit is to remove that mark. What has the mark is refused as a
checkpoint, by the same rule as in an object store (``remote/marker.py``). Megatron's tracker file
is written just before, so that a trainer does not find what is not whole either.
"""

import contextlib
import os
from pathlib import Path

from flmgrow.errors import IncompleteCheckpointError
from flmgrow.storage import durable, folders
from flmgrow.storage.remote.marker import COMPLETE

FOLDER = ".flmgrow"
MARK = f"{FOLDER}/plan.json"


def put(output: Path, plan: str) -> None:
    """Make the folder ``output``, unless it was begun before, and mark it.

    Raises:
        StorageError: The file system failed.
    """
    if not is_marked(output):
        folders.make_folders(output.parent, output / FOLDER)
        durable.write_small(output / MARK, plan.encode())
        durable.sync_folder(output.parent)


def remove(output: Path) -> None:
    """Let ``output`` count as whole.

    Raises:
        StorageError: The file system failed.
    """
    with durable.storage_errors(output / MARK, "removing"):
        (output / MARK).unlink()
    durable.sync_folder(output / FOLDER)
    with contextlib.suppress(OSError):  # an empty folder harms nobody
        (output / FOLDER).rmdir()


def discard(output: Path) -> None:
    """Remove an output that is marked, the mark last.

    Raises:
        StorageError: The file system failed.
    """
    folders.prune(output, keep={output / MARK})
    folders.remove_tree(output)


def is_marked(output: Path) -> bool:
    """Return whether a run has begun ``output`` in place, and not finished it."""
    return os.path.lexists(output / MARK)


def refuse_marked(*paths: Path) -> None:
    """Raise IncompleteCheckpointError if one of ``paths`` is marked.

    A copy from an object store may have both marks: it is whole.
    """
    for folder in paths:
        if is_marked(folder) and not os.path.lexists(folder / COMPLETE):
            raise IncompleteCheckpointError(
                "is not complete: the run that writes it was interrupted, or is at it",
                "run the command that writes it again: it resumes",
                where=folder,
            )
