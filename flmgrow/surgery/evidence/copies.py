"""Copies: what several ranks hold must be one thing, as each rank of a trainer loads its own.

The reference forward reads the first of several copies alone. So in both checkpoints every copy of
every state is compared with the first; those of the result are derived again as well
(:mod:`flmgrow.surgery.evidence.elements`).
"""

from flmgrow.formats.checkpoint import Checkpoint
from flmgrow.model.states import State
from flmgrow.surgery.evidence.check import Check
from flmgrow.surgery.replicas import Replicated, check_replicas, copies
from flmgrow.text import Setting, Text

_SHOWN = 3


def check_copies(checkpoint: Checkpoint, allowed: bool = False) -> list[Check]:
    """Compare the copies of every state at hand; none if nothing is there more than once.

    ``allowed`` says that those that drifted apart were looked at, and the first is meant.
    """
    name = f"copies in {checkpoint.name}"
    readers = checkpoint.readers
    total = sum(copies(reader) for reader in readers.values())
    if not total:
        return []
    drift = [
        line
        for state, reader in readers.items()
        for line in check_replicas(
            reader, Replicated.RANK0, "" if state is State.WEIGHT else state, checkpoint.folder
        )
    ]
    if not drift:
        return [Check(name, True, f"{total} agree with the first of their kind")]
    more = f"; and {len(drift) - _SHOWN} more" if drift[_SHOWN:] else ""
    detail = "; ".join(drift[:_SHOWN]) + more
    if allowed:
        said = Text("the first is taken, as ", Setting("replicated", Replicated.RANK0), " said: ")
        return [Check(name, None, said + detail)]
    return [Check(name, False, detail)]
