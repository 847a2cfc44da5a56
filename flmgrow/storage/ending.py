"""How the ranks of one command end: none before the others know why, and one of them tells.

A launcher ends all ranks once one of them has ended. So rank 0 waits until the others have stopped,
and these wait until rank 0 has said what went wrong.
"""

import time
from collections.abc import Collection, Sequence

from flmgrow.storage.sign import Other

GRACE = 10.0
"""Seconds in which ranks stop once one of them has failed; they look after every block."""

SPEAKING = 0.5
"""Seconds that rank 0 has to tell of an error."""

COMING = 3.0
"""Seconds in which those come that are not there yet, to hear of it."""

BEAT = 1.0
"""Seconds after which a sign changes although there is nothing new."""


def wait_for_all(others: Collection[Other], pace: float, patience: float, *, failed: bool) -> None:
    """Wait, on rank 0, until all have stopped and, if one has ``failed``, have heard of it.

    Looks every ``pace`` seconds. Those that are lost, or quiet for more than ``patience`` seconds,
    are not waited for.
    """
    begun = time.monotonic()
    while not all(
        _is_done(each, failed=failed) if each.fresh else time.monotonic() - begun > COMING
        for each in others
        if not (each.fresh and (each.died or each.quiet > patience))
    ):
        if time.monotonic() - begun > GRACE:
            return
        time.sleep(pace)


def first_speaks(first: Other, pace: float) -> bool:
    """Wait, on any other rank, until rank 0 has ended; return whether it tells of an error."""
    begun = time.monotonic()
    while not (first.fresh and (first.content["ended"] or first.died)):
        if time.monotonic() - begun > GRACE:
            break
        time.sleep(pace)
    told = bool(first.fresh and first.content["failed"])
    if told:
        time.sleep(SPEAKING)
    return told


def lower_speaks(lower: Sequence[Other], launch: str) -> bool:
    """Return whether one of the ranks between rank 0 and this one tells that rank 0 is lost.

    ``launch`` is what this launch is known by.
    """
    for _ in range(2):
        for each in lower:
            content = each.look()
            known = content.get("launch") == launch
            if known and (content["stopped"] or (each.fresh and not each.died)):
                return True
        if lower:
            time.sleep(2 * BEAT)
    return False


def _is_done(other: Other, *, failed: bool) -> bool:
    """Whether another rank has stopped, and has heard why."""
    done: bool = other.content["stopped"] and (not failed or other.content["heard"])
    return done
