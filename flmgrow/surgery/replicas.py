"""Copies that must be equal: tensors every tensor rank holds, and the tied embedding on the last
rank.

Training can let them drift apart without anyone noticing, and a tool that then takes rank 0 hides
it. Their checksums are in the file directories, so equal copies cost nothing to recognise; unequal
ones are read and measured.
"""

import numpy as np

from flmgrow.errors import BadCheckpointError, UsageError
from flmgrow.formats.reading import DTYPES, Array, LogicalReader, StoredArray


def _raw(array: StoredArray) -> Array:
    record = array.record
    data = array.file.read(record.storage, record.offset, record.nbytes)
    return np.frombuffer(data, np.uint8)


def _own_record(array: StoredArray) -> bool:
    return array.record.nbytes == array.record.storage.nbytes


def _equal(a: StoredArray, b: StoredArray) -> bool:
    if a.record.dtype != b.record.dtype:
        return False
    if _own_record(a) and _own_record(b) and a.record.storage.crc is not None:
        return a.record.storage.crc == b.record.storage.crc
    return bool(np.array_equal(_raw(a), _raw(b)))


def _difference(a: StoredArray, b: StoredArray) -> str:
    if a.record.dtype != b.record.dtype:
        return f"dtype {a.record.dtype} and {b.record.dtype}"
    values = [_raw(x).view(DTYPES[x.record.dtype]).astype(np.float64) for x in (a, b)]
    with np.errstate(invalid="ignore"):  # infinity less infinity is not equal, and not a number
        gap = np.abs(values[0] - values[1])
    return f"{int((gap != 0).sum())} of {gap.size} entries differ, by up to {gap.max():.3g}"


def check_replicas(reader: LogicalReader, mode: str = "check") -> list[str]:
    """Compare all replicas; return a line for each difference where ``mode`` is rank0.

    Raises BadCheckpointError at the first difference where ``mode`` is check.
    """
    if mode not in ("check", "rank0"):
        raise UsageError(f"--replicated {mode}: wanted check or rank0")
    lines = []
    for first, *others in reader.replicas():
        for other in others:
            if _equal(first, other):
                continue
            line = f"{other}: not equal to {first}: {_difference(first, other)}"
            if mode == "check":
                raise BadCheckpointError(
                    line, "replicas have drifted apart; --replicated rank0 takes the first rank's"
                )
            lines.append(line)
    return lines
