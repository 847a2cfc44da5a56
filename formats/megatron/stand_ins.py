"""What stands in the place of a state that is not stored: what training would begin with.

A frozen parameter has no optimizer state. Where one is asked for (a growth maps it, a trainer goes
on with it), its moments are zero, and its master is the weight.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np

from flmgrow.formats.layout.lags import Lags, has_state
from flmgrow.formats.layout.placements import Placement
from flmgrow.formats.pieces import DTYPES, Piece, as_bytes
from flmgrow.model.states import State


@dataclass(frozen=True, eq=False)
class ZeroPiece:
    """Moments of a parameter that has none."""

    placement: Placement
    dtype: str

    def __str__(self) -> str:
        return f"{self.placement.key}: no state"

    def read_into(self, offset: int, target: memoryview) -> None:
        """Fill ``target`` with zeros."""
        target[:] = bytes(len(target))

    def checksum(self) -> int | None:
        """Return None: it lies in no file."""
        return None


@dataclass(frozen=True, eq=False)
class CastPiece:
    """A weight in another dtype than its own."""

    weight: Piece
    dtype: str

    @property
    def placement(self) -> Placement:
        """That of the weight."""
        return self.weight.placement

    def __str__(self) -> str:
        return f"{self.weight}: as {self.dtype}"

    def read_into(self, offset: int, target: memoryview) -> None:
        """Fill ``target`` with the array's bytes from byte ``offset`` on, whole elements of it."""
        stored, wanted = DTYPES[self.weight.dtype], DTYPES[self.dtype]
        values = np.empty(len(target) // wanted.itemsize, stored)
        self.weight.read_into(offset // wanted.itemsize * stored.itemsize, as_bytes(values))
        target[:] = as_bytes(values.astype(wanted))

    def checksum(self) -> int | None:
        """Return None: it lies in no file."""
        return None


def stand_ins(state: State, dtype: str, weights: Iterable[Piece], lags: Lags) -> Iterator[Piece]:
    """Yield ``state`` in ``dtype`` for each of the ``weights`` that has none by ``lags``."""
    for weight in weights:
        if has_state(weight.placement, lags):
            continue
        if state is State.MASTER:
            yield weight if weight.dtype == dtype else CastPiece(weight, dtype)
        else:
            yield ZeroPiece(weight.placement, dtype)
