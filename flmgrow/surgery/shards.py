"""The files of a plan that hold weights, and some of them by number or name."""

import re
from fnmatch import fnmatchcase

from flmgrow.errors import UsageError
from flmgrow.formats.targets import PlannedFile
from flmgrow.surgery.plan import GrowthPlan
from flmgrow.text import Setting, Text

_NUMBERS = re.compile(r"(\d+)(?:-(\d+))?")
_SETTING = Setting("only_shards")
_HINT = "numbers such as 0-1 or 0,3, or names such as mp_rank_00_000 or *-00001-of-*"


def shards_of(plan: GrowthPlan) -> list[PlannedFile]:
    """Return the files that hold weights or other states, in the plan's order."""
    return [file for file in plan.files if file.arrays]


def chosen_shards(plan: GrowthPlan, wanted: str) -> list[PlannedFile]:
    """Return the shards that ``wanted`` lists, with commas: numbers, ranges of numbers, or names.

    A name may be a pattern, of a file or of a folder that it is in.

    Raises:
        UsageError: For one that means no shard.
    """
    shards = shards_of(plan)
    chosen: set[int] = set()
    for part in filter(None, (part.strip() for part in wanted.split(","))):
        if match := _NUMBERS.fullmatch(part):
            first, last = int(match[1]), int(match[2] or match[1])
            numbers = set(range(first, last + 1)) if last < len(shards) else set()
        else:
            numbers = {i for i, file in enumerate(shards) if _is_named(file.path, part)}
        if not numbers:
            raise UsageError(
                Text(
                    _SETTING,
                    f" {part}: no such shard, there are {len(shards)}, counted from 0: "
                    f"{', '.join(file.path for file in shards[:3])}{', ...' if shards[3:] else ''}",
                ),
                _HINT,
            )
        chosen |= numbers
    if not chosen:
        raise UsageError(Text(_SETTING, f" {wanted!r}: names none"), _HINT)
    return [shards[number] for number in sorted(chosen)]


def _is_named(path: str, pattern: str) -> bool:
    return any(fnmatchcase(part, pattern) for part in (path, *path.split("/")))
