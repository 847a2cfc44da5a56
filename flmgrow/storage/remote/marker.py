"""What tells a finished folder in an object store from one that is still being written.

An object store has no rename: objects appear under their final keys, one by one, and for hours a
folder may hold a part of a checkpoint that looks whole to who asks for one object. So a run that
writes a folder begins with ``.flmgrow/plan.json`` in it, and puts ``.flmgrow/complete`` there when
all else is there and checked. A folder with a plan and no such marker is refused by every command.
One without ``.flmgrow/`` was put there by another program, and is taken as it is.
"""

from collections.abc import Iterable

from flmgrow.errors import IncompleteCheckpointError
from flmgrow.storage.remote.addresses import Address

FOLDER = ".flmgrow"
PLAN = f"{FOLDER}/plan.json"
COMPLETE = f"{FOLDER}/complete"
JOURNAL = f"{FOLDER}/journal"
LEASE = f"{FOLDER}/lease"


def is_mark(address: Address, key: str) -> bool:
    """Whether ``key`` is none of a checkpoint at ``address``, but tells of its being written."""
    return key.startswith(address.below(FOLDER).key + "/")


def refuse_incomplete(address: Address, keys: Iterable[str]) -> None:
    """Raise IncompleteCheckpointError if a run has begun a folder and not finished it.

    ``keys`` are those of ``address``, or of its ``.flmgrow``.
    """
    known = set(keys)
    if address.below(PLAN).key in known and address.below(COMPLETE).key not in known:
        raise IncompleteCheckpointError(
            "is not complete: the run that writes it was interrupted, or is at it",
            "run the command that writes it again: it resumes",
            where=address,
        )
