"""Locking a checkpoint folder against a second run, for all ranks.

A scheduler may start a job again before the first one has ended; only one may save. So the first
rank holds a lock in the folder of checkpoints while a stage runs, and the kernel releases it when
that process dies, however it dies.
"""

import contextlib
from collections.abc import Iterator
from pathlib import Path

import torch

from flmgrow.errors import OutputExistsError
from flmgrow.storage.durable import close_quietly
from flmgrow.storage.folders import make_folders
from flmgrow.storage.lock import LockHeldError, take_lock
from flmgrow.trainer.ranks.agreement import together

LOCK = ".lock"


@contextlib.contextmanager
def own_folder(folder: Path) -> Iterator[None]:
    """Let no other run save in ``folder`` meanwhile; on all ranks at once.

    Raises:
        OutputExistsError: If another one does.
        StorageError: If it cannot be made or locked.
    """
    held: list[int] = []

    def take() -> None:
        if torch.distributed.get_rank() == 0:
            make_folders(Path(folder.anchor), folder)
            try:
                held.append(take_lock(folder / LOCK))
            except LockHeldError as holder:
                raise OutputExistsError(
                    f"another run saves there ({holder})",
                    "wait until it has ended, then run the same command again",
                    where=folder,
                ) from None

    together(take)
    try:
        yield
    finally:
        for descriptor in held:
            (folder / LOCK).unlink(missing_ok=True)
            close_quietly(descriptor)
            with contextlib.suppress(OSError):  # only if nothing was saved there
                folder.rmdir()
