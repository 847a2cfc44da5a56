"""Reading JSON strictly: no repeated keys, bounded size and nesting.

JSON out of a checkpoint, which may say one thing twice, or nest until the reader falls over.
Python's parser takes the last of two equal keys and accepts numbers that JSON does not have; two
programs that read one file differently are how a hostile file passes a check. Here such files are
refused, and so are larger ones than there can honestly be.
"""

import json
from collections import Counter
from collections.abc import Callable
from typing import Any, NoReturn

from flmgrow.errors import BadCheckpointError
from flmgrow.storage.encodings import encoding_hint
from flmgrow.storage.files import ReadOnlyFile
from flmgrow.text import Found, Text

Json = dict[str, Any]
"""Plain data: an object of JSON."""

LFS = b"version https://git-lfs.github.com/spec/"
MOST_KEYS = 2_000_000


def refuse_pointer(start: bytes, where: str) -> None:
    """Raise BadCheckpointError if a file begins as the pointer that Git LFS leaves in its place."""
    if start.startswith(LFS):
        raise BadCheckpointError(
            "is a Git LFS pointer, not the file itself",
            "run git lfs pull in its folder",
            where=where,
        )


def _unique(where: str) -> Callable[[list[tuple[str, object]]], dict[str, object]]:
    count = 0

    def build(pairs: list[tuple[str, object]]) -> dict[str, object]:
        nonlocal count
        count += len(pairs)
        if count > MOST_KEYS:
            raise BadCheckpointError(f"holds more than {MOST_KEYS} keys", where=where)
        result = dict(pairs)
        if len(result) < len(pairs):
            counts = Counter(name for name, _ in pairs)
            twice = next(name for name, count in counts.items() if count > 1)
            raise BadCheckpointError(
                "stands there twice",
                "it is damaged or hostile: use another copy",
                where=(where, twice),
            )
        return result

    return build


def parse_object(data: bytes, where: str) -> dict[str, object]:
    """Return the one JSON object in ``data``; ``where`` names its file in messages.

    Raises:
        BadCheckpointError: For anything else, and for a key that stands there twice.
    """

    def refuse(constant: str) -> NoReturn:
        raise ValueError(f"{constant} is no number")

    try:
        found = json.loads(
            data.decode("utf-8"), object_pairs_hook=_unique(where), parse_constant=refuse
        )
    except RecursionError:
        raise BadCheckpointError(
            "is nested too deeply", "use another copy of the file", where=where
        ) from None
    except ValueError as error:
        raise BadCheckpointError(
            f"is not JSON: {error}",
            encoding_hint(data) or "copy the file again from where it was complete",
            where=where,
        ) from None
    if not isinstance(found, dict):
        raise BadCheckpointError(
            Text("holds a ", Found(type(found).__name__)), where=where, wanted="an object"
        )
    return found


def read_object(file: ReadOnlyFile, most: int) -> dict[str, object]:
    """Return the JSON object that a file of at most ``most`` bytes holds.

    Raises:
        BadCheckpointError: The checkpoint is damaged.
    """
    if file.size > most:
        raise BadCheckpointError(
            Text("has ", Found(file.size), " bytes"), where=file.path, wanted=f"at most {most}"
        )
    data = file.read(0, file.size)
    refuse_pointer(data, str(file.path))
    return parse_object(data, str(file.path))
