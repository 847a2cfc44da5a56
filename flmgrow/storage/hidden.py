"""The hidden folder beside an output in which it is made: whose it is, and how it goes away.

Two runs must not write one output, and what a run could not remove must not stay for ever.
"""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

from flmgrow.errors import OutputExistsError, StorageError, UsageError
from flmgrow.storage import durable, folders
from flmgrow.storage.lease import Lease
from flmgrow.storage.lock import NO_LOCKS, LockHeldError, take_lock
from flmgrow.storage.remote.addresses import address_of, is_remote

LOCK, LEASE = "lock", "lease"


def clear_leftovers(path: Path) -> str:
    """Remove what a run that made the output ``path`` could not; return what to tell of it.

    A half-done run stays.

    Raises:
        OutputExistsError: If another run is at it.
        OSError: The file system failed.
        StorageError: The file system failed.
    """
    temp = hidden_folder(path)
    if not folders.is_own_folder(temp):
        return ""
    with locked(path, temp):
        if (temp / "data").exists():
            return f"; {temp} holds a half-done run"
        if remove_hidden(temp):
            return f"; removed the leftovers in {temp}"
    return ""


def already_exists(path: Path, told: bool = False) -> OutputExistsError:
    """Return the error for an output that is there, after removing what its run has left.

    It is ``told`` if rank 0, which finds it as well, tells of it.
    """
    note = ""
    if not told:
        with contextlib.suppress(OSError, StorageError, OutputExistsError):
            note = clear_leftovers(path)
    error = OutputExistsError(
        f"already exists{note}",
        hint="choose another output folder, or remove this one",
        where=path,
    )
    error.told = told
    return error


def hidden_folder(path: Path) -> Path:
    """Return the folder beside an output in which it is made."""
    return path.with_name(f".{path.name}.flmgrow")


@contextlib.contextmanager
def locked(path: Path, temp: Path) -> Iterator[Lease | None]:
    """Keep other runs away from the output ``path`` and its hidden folder ``temp``.

    Gives the lease, to be checked, where there are no locks.

    Raises:
        OutputExistsError: The output is there, or another run is writing it.
        StorageError: The file system failed.
    """
    with contextlib.ExitStack() as stack, one_run(path):
        try:
            stack.callback(durable.close_quietly, take_lock(temp / LOCK))
            lease = None
        except StorageError as error:
            if getattr(error.__cause__, "errno", None) not in NO_LOCKS:
                raise
            lease = Lease(temp / LEASE)
            stack.callback(lease.close)
        held = stack.pop_all()
    with held:
        yield lease


@contextlib.contextmanager
def held(folder: Path) -> Iterator[None]:
    """Keep other runs away from a folder that stays, which is made if it is not there.

    Raises:
        OutputExistsError: If one is at it.
        StorageError: The file system failed.
    """
    whole = folder.absolute()
    folders.make_folders(Path(whole.anchor), whole)
    with locked(folder, folder):
        yield


@contextlib.contextmanager
def one_run(path: Path) -> Iterator[None]:
    """Say of a lock that somebody has, or of a lease that was lost, what it means for ``path``."""
    try:
        yield
    except LockHeldError as held:
        raise OutputExistsError(
            f"another run ({held}) is writing it",
            hint="wait for it to finish or stop it, or choose another output folder",
            where=path,
        ) from None


def remove_hidden(temp: Path) -> bool:
    """Remove the hidden folder, the lock last; if that fails, a later run does it."""
    with contextlib.suppress(StorageError, OSError):
        last = [each for each in (temp / LEASE, temp / LOCK) if each.exists()]
        folders.prune(temp, keep=last)
        for each in last:
            each.unlink()
        temp.rmdir()
        return True
    return False


def absolute(path: Path) -> Path:
    """Return ``path`` with its parent's links resolved; its own last part is left as it is."""
    if is_remote(path):
        raise UsageError(
            "is in an object store", "name a folder", where=address_of(path), wanted="a folder"
        )
    if path.name in ("", ".."):
        raise UsageError("not a name for a new folder", hint="name the folder to make", where=path)
    parent = Path(os.path.realpath(path.parent))
    if not parent.is_dir():
        raise UsageError(
            "no such folder", hint="create it", where=parent, wanted=f"for {path.name}"
        )
    return parent / path.name
