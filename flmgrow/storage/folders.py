"""Folders made, looked up and removed for certain, with failures as StorageError.

A folder may be on a disk or mounted from a server, made by an earlier run or planted by somebody,
and removed by another machine. What is removed here is removed without following a link.
"""

import contextlib
import os
import stat
from collections.abc import Collection
from pathlib import Path

from flmgrow.errors import StorageError
from flmgrow.storage.durable import NO_RENAME, RESUME, close_quietly, storage_errors, sync_folder


def can_rename(folder: Path) -> bool:
    """Try, in ``folder``, whether files, and folders that are not empty, can be renamed there.

    Raises:
        StorageError: The file system failed.
    """
    old, new = folder / "try", folder / "tried"
    with storage_errors(folder, "writing into it"):
        _remove_trees(old, new)  # of a run that was killed here
        old.mkdir()
        (old / "file").write_bytes(b"")
        try:
            (old / "file").rename(old / "other")
            old.rename(new)
        except OSError as error:
            if error.errno not in NO_RENAME:
                raise
            return False
        finally:
            _remove_trees(old, new)
    return True


def _remove_trees(*folders: Path) -> None:
    for folder in folders:
        if folder.exists():
            remove_tree(folder)


def sync_tree(folder: Path) -> None:
    """Put the names in ``folder`` and in all folders below it on the disk.

    Raises:
        StorageError: The file system failed.
    """
    with storage_errors(folder, "listing"):
        below = sorted(Path(entry) for entry in os.scandir(folder) if entry.is_dir())
    for each in below:
        sync_tree(each)
    sync_folder(folder)


def make_folders(root: Path, folder: Path) -> None:
    """Make ``folder``, somewhere below the existing ``root``, durably.

    Raises:
        StorageError: The file system failed.
    """
    if folder == root:
        return
    refresh(folder.parent)  # another machine may have removed it
    with storage_errors(folder, "looking up"):
        if folder.is_dir():
            return
    make_folders(root, folder.parent)
    with storage_errors(folder, "creating"):
        folder.mkdir(exist_ok=True)  # another thread may make it now too
    sync_folder(folder.parent)


def refresh(folder: Path) -> None:
    """Let what is looked up in ``folder`` be as it is now, also where it is mounted from a server.

    A client remembers what it has looked up for up to a minute, also that there was nothing; but
    whenever a folder is opened, it asks whether that has changed (close-to-open consistency).
    """
    with contextlib.suppress(OSError):  # what is looked up then tells
        close_quietly(os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC))


def is_there(path: Path) -> bool:
    """Return whether there is something, or a link, at ``path`` as of now."""
    refresh(path.parent)
    return os.path.lexists(path)


def make_private_folder(folder: Path) -> None:
    """Make ``folder`` for this user alone, or accept the one that an earlier run of theirs made.

    In a shared folder such as /tmp anybody can plant a link or a folder of their own under the
    name: both are refused.

    Raises:
        StorageError: The file system failed.
    """
    with storage_errors(folder, "creating"):
        with contextlib.suppress(FileExistsError):
            folder.mkdir(0o700)
            return
        with contextlib.suppress(FileNotFoundError):  # its run may be removing it just now
            if not is_own_folder(folder):
                raise StorageError(
                    "is a link, a file or another user's folder",
                    hint="find out who put it there; remove it or choose another output folder",
                    where=folder,
                    wanted="one of our own",
                )


def is_own_folder(folder: Path) -> bool:
    """Return whether ``folder`` is a real folder (no link) of this user.

    Raises:
        OSError: The file system failed.
    """
    found = folder.lstat()
    return stat.S_ISDIR(found.st_mode) and found.st_uid == os.geteuid()


def prune(folder: Path, keep: Collection[Path]) -> bool:
    """Remove every file below ``folder`` that is not in ``keep``, and every folder left empty.

    Returns whether ``folder`` itself is empty now. Links are removed, never followed.

    Raises:
        StorageError: The file system failed.
    """
    empty = True
    with storage_errors(folder, "listing"):
        entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
    for entry in entries:
        path = Path(entry)
        with storage_errors(path, "removing"):
            if entry.is_dir(follow_symlinks=False):
                if prune(path, keep):
                    path.rmdir()
                else:
                    empty = False
            elif path in keep:
                empty = False
            else:
                path.unlink(missing_ok=True)
    return empty


def check_free_space(folder: Path, needed: int, told: Path | None = None) -> None:
    """Raise StorageError, naming ``told`` if given, unless so many bytes are free at ``folder``."""
    with storage_errors(folder, "asking for the free space"):
        found = os.statvfs(folder)
    free = found.f_bavail * found.f_frsize
    if found.f_blocks and free < needed:  # some network mounts do not say
        raise StorageError(
            f"{told or folder}: {free} bytes are free, {needed} are needed",
            hint=f"free some space, then {RESUME}",
        )


def remove_tree(folder: Path) -> None:
    """Remove a folder and all in it. Links are removed, never followed.

    Raises:
        StorageError: The file system failed.
    """
    prune(folder, ())
    with storage_errors(folder, "removing"):
        folder.rmdir()
