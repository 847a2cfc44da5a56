"""The bounds of what a pickle may ask for, whoever wrote it.

A small file could ask for more memory or time than there is: by copying what it holds again and
again, or by keys that were chosen to collide. What goes beyond a bound is refused.
"""

import sys
from collections.abc import Iterable
from typing import NoReturn

from flmgrow.errors import BadCheckpointError
from flmgrow.formats.torch_file.values import (
    Global,
)

MAX_KEY_PARTS = 64
MAX_KEY_BITS = 1024
MAX_ALIKE = 64
"""Keys of one container with the same hash: by chance there are two, among many millions."""
LARGEST_PLAIN_HASH = sys.hash_info.modulus
"""Whole numbers below this one are their own hash."""


def refuse(what: str, wanted: object = "") -> NoReturn:
    """Refuse the pickle: the reader of it adds the file's name to what is wrong."""
    hint = "the file is damaged or hostile: use another copy"
    raise BadCheckpointError(what, hint, wanted=wanted)


def describe(value: object) -> str:
    """Return a short name for any value, however large or hostile it is."""
    if isinstance(value, str | bytes):
        return repr(value[:60])
    if isinstance(value, bool | Global) or (isinstance(value, int) and value.bit_length() < 64):
        return str(value)
    return type(value).__name__


class Budget:
    """How much may still be copied by calls.

    A call can copy what was read once and is referred to many times; without a bound, a small file
    could fill the memory.
    """

    def __init__(self, count: int) -> None:
        self.left = count

    def spend(self, count: int) -> None:
        """Take ``count`` elements or bytes off the budget, or refuse the pickle."""
        self.left -= count
        if self.left < 0:
            refuse("calls that copy more data than the file has")


def check_key(key: object) -> None:
    """Refuse what cannot be a dict key or a set member, or would take long to hash."""
    parts = [key]
    checked = 0
    while parts:
        part = parts.pop()
        checked += 1
        if isinstance(part, tuple | frozenset) and len(part) + checked <= MAX_KEY_PARTS:
            parts.extend(part)
        elif not _is_plain_key(part) or checked > MAX_KEY_PARTS:
            refuse(f"a {describe(part)} as key of a dict or member of a set")


class KeyCheck:
    """Checks the keys of a file's dicts and sets, which someone may have chosen to collide.

    Python finds a key by its hash, and compares it with every other of the same hash. Those of
    texts and bytes are random; those of numbers and tuples are not, and as many with one hash as
    are wanted can be written down: a megabyte of them would take minutes.
    """

    def __init__(self) -> None:
        self.alike: dict[tuple[int, int], int] = {}

    def __call__(self, key: object, container: object) -> None:
        """Refuse ``key`` if it is none, or one of many in ``container`` of the same hash."""
        if type(key) is str:
            return
        check_key(key)
        if type(key) in _HASHED_BY_VALUE and not (
            type(key) is int and -LARGEST_PLAIN_HASH < key < LARGEST_PLAIN_HASH
        ):
            place = (id(container), hash(key))
            self.alike[place] = count = self.alike.get(place, 0) + 1
            if count > MAX_ALIKE:
                refuse(f"more than {MAX_ALIKE} keys chosen to have the same hash")


def _is_plain_key(value: object) -> bool:
    # An opaque value is kept by identity, so that nothing of its own decides what it equals.
    if isinstance(value, int):
        return value.bit_length() <= MAX_KEY_BITS
    return value is None or type(value).__name__ in _PLAIN_KEYS


_PLAIN_KEYS = {"str", "float", "bytes", "Global", "Opaque"}
_HASHED_BY_VALUE = (int, float, tuple, frozenset)


def checked_set(members: Iterable[object]) -> set[object]:
    """Return the set of ``members``, or refuse one that can be none or collides with many."""
    check, made = KeyCheck(), set[object]()
    for member in members:
        check(member, made)
        made.add(member)
    return made
