"""Mutations of a file, the same for the same seed: what a test has time for, and what is tried
where there is no fuzzer that sees which lines are reached.
"""

from collections.abc import Callable, Sequence
from random import Random

Mutation = Callable[[bytearray, Random], None]

_NUMBERS = (0, 1, 0x7F, 0x80, 0xFF, 0x7FFF, 0xFFFF, 0x7FFFFFFF, 0xFFFFFFFF, 2**63 - 1, 2**64 - 1)
_WORDS = (
    b"null", b"true", b"-1", b"1e999", b"NaN", b"[]", b"{}", b'""', b"\x00", b"\xff\xfe", b"..",
    b"/etc/passwd", b"os\nsystem\n", b"cposix\nsystem\n", b"\x93", b"R", b"*a", b"&a", b"!!python/",
)  # fmt: skip


def _place(data: bytearray, choose: Random) -> int:
    return choose.randrange(len(data) + 1)


def _flip(data: bytearray, choose: Random) -> None:
    if data:
        data[choose.randrange(len(data))] ^= 1 << choose.randrange(8)


def _set(data: bytearray, choose: Random) -> None:
    if data:
        data[choose.randrange(len(data))] = choose.randrange(256)


def _cut(data: bytearray, choose: Random) -> None:
    start = _place(data, choose)
    del data[start : start + choose.randrange(1, 33)]


def _end(data: bytearray, choose: Random) -> None:
    del data[_place(data, choose) :]


def _repeat(data: bytearray, choose: Random) -> None:
    start = _place(data, choose)
    piece = data[start : start + choose.randrange(1, 65)]
    at = _place(data, choose)
    data[at:at] = piece * choose.choice((1, 1, 2, 50))


def _number(data: bytearray, choose: Random) -> None:
    size = choose.choice((1, 2, 4, 8))
    value = choose.choice(_NUMBERS) & (1 << 8 * size) - 1
    start = _place(data, choose)
    data[start : start + size] = value.to_bytes(size, choose.choice(("little", "big")))


def _word(data: bytearray, choose: Random) -> None:
    start = _place(data, choose)
    data[start : start + choose.choice((0, 0, 1, 4))] = choose.choice(_WORDS)


MUTATIONS: Sequence[Mutation] = (_flip, _set, _cut, _end, _repeat, _number, _word)


def mutated(data: bytes, choose: Random) -> bytes:
    """``data`` after one to four mutations."""
    changed = bytearray(data)
    for _ in range(choose.choice((1, 1, 2, 4))):
        choose.choice(MUTATIONS)(changed, choose)
    return bytes(changed)
