"""Copies that must be equal: tensors every tensor rank holds, and the tied embedding on the last
rank.

Training can let them drift apart without anyone noticing, and a tool that then takes rank 0 hides
it. Their checksums are in the file directories, so equal copies cost nothing to recognise; unequal
ones are read and measured.
"""

import numpy as np

from flmgrow.errors import BadCheckpointError, UsageError
from flmgrow.formats.reading import LogicalReader, Piece, as_bytes, read_whole


def _equal(a: Piece, b: Piece) -> bool:
    if a.dtype != b.dtype:
        return False
    sums = a.checksum(), b.checksum()
    if None not in sums:
        return sums[0] == sums[1]
    return bytes(as_bytes(read_whole(a))) == bytes(as_bytes(read_whole(b)))


def _difference(a: Piece, b: Piece) -> str:
    if a.dtype != b.dtype:
        return f"dtype {a.dtype} and {b.dtype}"
    values = [read_whole(x).astype(np.float64) for x in (a, b)]
    with np.errstate(invalid="ignore"):  # infinity less infinity is not equal, and not a number
        gap = np.abs(values[0] - values[1])
    return f"{int((gap != 0).sum())} of {gap.size} entries differ, by up to {gap.max():.3g}"


def check_replicas(reader: LogicalReader, mode: str = "check", of: str = "") -> list[str]:
    """Compare all replicas; return a line for each difference where ``mode`` is rank0.

    ``of`` names the state that the reader reads, if it is not the weights.
    Raises BadCheckpointError at the first difference where ``mode`` is check.
    """
    if mode not in ("check", "rank0"):
        raise UsageError(f"--replicated {mode}: wanted check or rank0")
    lines = []
    for first, *others in reader.replicas():
        for other in others:
            if _equal(first, other):
                continue
            state = f"{of} of " if of else ""
            line = f"{other}: not equal to {first}: {state}{_difference(first, other)}"
            if mode == "check":
                raise BadCheckpointError(
                    line, "replicas have drifted apart; --replicated rank0 takes the first rank's"
                )
            lines.append(line)
    return lines
