"""Copies that must be equal: tensors every tensor rank holds, and the tied embedding on the last
rank.

Training can let them drift apart without anyone noticing, and a tool that then takes rank 0 hides
it. Their checksums are in the file directories, so equal copies cost nothing to recognise; unequal
ones are read, a few MiB at a time, and measured.
"""

from enum import StrEnum
from pathlib import Path

import numpy as np

from flmgrow.errors import BadCheckpointError
from flmgrow.formats.pieces import Piece, as_bytes, pieces_of
from flmgrow.formats.reading import LogicalReader
from flmgrow.model.arrays import FloatArray
from flmgrow.operators.choices import chosen
from flmgrow.text import Setting, Text


class Replicated(StrEnum):
    """What may become of copies that differ: refused, or the first rank's taken."""

    CHECK = "check"
    RANK0 = "rank0"


_WAY_OUT = Text(
    "replicas have drifted apart; ",
    Setting("replicated", Replicated.RANK0),
    " takes the first rank's",
)
BLOCK = 4 << 20
"""Bytes of a copy compared at once."""


def _equal(a: Piece, b: Piece) -> bool:
    if a.dtype != b.dtype:
        return False
    sums = a.checksum(), b.checksum()
    if None not in sums:
        return sums[0] == sums[1]
    blocks = zip(pieces_of(a, BLOCK), pieces_of(b, BLOCK), strict=True)
    return all(as_bytes(one) == as_bytes(other) for one, other in blocks)


def _difference(a: Piece, b: Piece) -> str:
    if a.dtype != b.dtype:
        return f"dtype {a.dtype} and {b.dtype}"
    count = total = 0
    worst = 0.0
    for one, other in zip(pieces_of(a, BLOCK), pieces_of(b, BLOCK), strict=True):
        bits = f"V{one.itemsize}"
        count += int((one.view(bits) != other.view(bits)).sum())
        total += one.size
        worst = max(worst, float(_gap(one.astype(np.float64), other.astype(np.float64))))
    return f"{count} of {total} entries differ, by up to {worst:.3g}"


def _gap(one: FloatArray, other: FloatArray) -> float:
    """Return the largest difference; infinite if one of two unequal values is not finite."""
    same = (one == other) | (np.isnan(one) & np.isnan(other))
    with np.errstate(invalid="ignore"):
        gap = np.where(same, 0.0, np.abs(one - other))
    return float(np.nan_to_num(gap, nan=np.inf).max())


def replicated_as(word: str) -> Replicated:
    """Return the mode that ``word`` stands for.

    Raises:
        UsageError: If there is none.
    """
    return chosen(Setting("replicated"), word, Replicated)


def check_replicas(
    reader: LogicalReader,
    mode: Replicated = Replicated.CHECK,
    of: str = "",
    seen_from: Path | None = None,
) -> list[str]:
    """Compare all replicas; return a line for each difference where ``mode`` is rank0.

    ``of`` names the state that the reader reads, if it is not the weights; lines name files as seen
    from the folder ``seen_from``.

    Raises:
        BadCheckpointError: At the first difference where ``mode`` is check.
    """
    lines = []
    for first, *others in reader.replicas():
        for other in others:
            if _equal(first, other):
                continue
            state = f"{of} of " if of else ""
            found = f"{state}{_difference(first, other)}"
            if mode is Replicated.CHECK:
                hint = reader.ways_out or _WAY_OUT
                raise BadCheckpointError(f"not equal to {first}: {found}", hint, where=other)
            one, equal = (_name(piece, seen_from) for piece in (other, first))
            lines.append(f"{one}: not equal to {equal}: {found}")
    return lines


def _name(piece: Piece, folder: Path | None) -> str:
    return str(piece) if folder is None else str(piece).removeprefix(f"{folder}/")


def copies(reader: LogicalReader) -> int:
    """Return how many arrays hold again what another one holds."""
    return sum(len(group) - 1 for group in reader.replicas())
