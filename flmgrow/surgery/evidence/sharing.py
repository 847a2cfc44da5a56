"""Evidence that ranks gather together: each does its share, and all come to the same checks.

What is found is what one rank would find: of several things that are wrong, the first.
"""

from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import TypeVar

from flmgrow.storage.ranks import Ranks, first_of, flattened
from flmgrow.storage.shares import shared_out
from flmgrow.storage.strict_json import Json
from flmgrow.surgery.evidence.check import Check
from flmgrow.text import from_data, to_data

Found = TypeVar("Found")


def done_in_shares(
    jobs: Sequence[tuple[int, Callable[[], Found]]],
    ranks: Ranks,
    is_last: Callable[[Found], bool] = lambda _: False,
) -> list[Found]:
    """Return what ``jobs`` find, in order, up to the first that ``is_last``; each has its cost.

    What they find must be plain data, as JSON holds it.
    """
    world = ranks.world
    own = shared_out(range(len(jobs)), lambda number: jobs[number][0], world.size)[world.rank]
    found: list[tuple[int, Found]] = []
    for number in own:
        found.append((number, jobs[number][1]()))
        if is_last(found[-1][1]):
            break
    joined: list[Found] = []
    for _, each in sorted(ranks.exchange(found, flattened), key=lambda pair: pair[0]):
        joined.append(each)
        if is_last(each):
            break
    return joined


def made_by_first(make: Callable[[], Check], ranks: Ranks) -> Check:
    """Return a check that rank 0 makes alone."""
    own = make() if ranks.world.first else None
    told = ranks.exchange(None if own is None else described(own), first_of)
    return told_by(told) if own is None else own


def described(check: Check) -> Json:
    """Return a check as plain data."""
    return {**asdict(check), "detail": to_data(check.detail)}


def told_by(data: Json) -> Check:
    """Return the check that ``described`` made data of."""
    return Check(**{**data, "detail": from_data(data["detail"])})
