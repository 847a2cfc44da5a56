"""Pieces: the arrays in files that hold boxes of logical tensors, and the dtypes of weights.

Every format finds its own; all else reads bytes of them and asks for no more.
"""

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from math import prod
from typing import Any, Protocol

import ml_dtypes
import numpy as np

from flmgrow.errors import BadCheckpointError
from flmgrow.formats.layout.placements import Placement
from flmgrow.formats.torch_file.file import TorchFile
from flmgrow.formats.torch_file.strided import read_tensor
from flmgrow.formats.torch_file.values import TensorRecord
from flmgrow.model.arrays import Array

DTYPES: Mapping[str, np.dtype[Any]] = {
    "float64": np.dtype(np.float64),
    "float32": np.dtype(np.float32),
    "float16": np.dtype(np.float16),
    "bfloat16": np.dtype(ml_dtypes.bfloat16),
}
"""The dtypes of weights, by torch's name."""


def widest(dtypes: Collection[str]) -> str:
    """Return the dtype that holds all values of the given ones, by torch's name."""
    kinds = set(dtypes)
    if len(kinds) == 1:
        return next(iter(kinds))
    return "float64" if "float64" in kinds else "float32"


def as_bytes(array: Array) -> memoryview:
    """Return the bytes of a contiguous array of any shape; extension dtypes have no buffer of their
    own.
    """
    return array.reshape(-1).view(np.uint8).data


class Piece(Protocol):
    """A placement that was found in a file: an array whose bytes can be read."""

    @property
    def placement(self) -> Placement:
        """Which boxes of which tensors it holds."""

    @property
    def dtype(self) -> str:
        """The dtype of the array, by torch's name."""

    def read_into(self, offset: int, target: memoryview) -> None:
        """Fill ``target`` with the array's bytes from byte ``offset`` on."""

    def checksum(self) -> int | None:
        """Return the CRC32 of its bytes if that is written down, else None."""


@dataclass(frozen=True, eq=False)
class StoredArray:
    """A piece that is one tensor record of a torch file."""

    placement: Placement
    file: TorchFile
    record: TensorRecord

    def __str__(self) -> str:
        return f"{self.file.file.path}: {self.placement.key}"

    @property
    def dtype(self) -> str:
        """The dtype of the array, by torch's name."""
        return self.record.dtype

    def read_into(self, offset: int, target: memoryview) -> None:
        """Fill ``target`` with the array's bytes from byte ``offset`` on."""
        try:
            read_tensor(self.file, self.record, offset, target)
        except BadCheckpointError as error:
            raise error.with_more(f" (it holds {self.placement.key})") from None

    def checksum(self) -> int | None:
        """Return the CRC32 of its bytes: that of its record, if it fills one in its own order."""
        storage = self.record.storage
        fills = self.record.nbytes == storage.nbytes and self.record.is_contiguous
        return storage.crc if fills else None


def read_whole(piece: Piece) -> Array:
    """Return all values of a piece, in its stored shape."""
    values = np.empty(piece.placement.shape, DTYPES[piece.dtype])
    piece.read_into(0, as_bytes(values))
    return values


def pieces_of(piece: Piece, limit: int) -> Iterator[Array]:
    """Yield the values of a piece from front to back, flat (elements,), at most ``limit`` bytes of
    them at once.
    """
    dtype = DTYPES[piece.dtype]
    total, step = prod(piece.placement.shape), max(1, limit // dtype.itemsize)
    for start in range(0, total, step):
        values = np.empty(min(step, total - start), dtype)
        piece.read_into(start * dtype.itemsize, as_bytes(values))
        yield values
