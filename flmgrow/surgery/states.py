"""The values of every state of a grown model: weights, their masters, and Adam's moments."""

from dataclasses import replace
from typing import Any

import numpy as np

from flmgrow.formats.checkpoint import Checkpoint
from flmgrow.formats.pieces import DTYPES
from flmgrow.formats.reading import LogicalReader
from flmgrow.model.arrays import Array
from flmgrow.model.axes import Box
from flmgrow.model.states import State
from flmgrow.model.tensors import logical_tensors
from flmgrow.operators.choices import Moments
from flmgrow.operators.growth import Growth
from flmgrow.operators.moments import moment_growth
from flmgrow.surgery.kept_statistics import KeptStatistics
from flmgrow.surgery.optimizer_metadata import carried
from flmgrow.surgery.values import GrownValues

MASTER = np.dtype(np.float32)


def _of_masters(source: Checkpoint, growth: Growth) -> bool:
    """Whether weights are computed from float32 masters.

    Without a growth (and without masks to bake) they are copied as they are, so that resharding is
    bit-equal.
    """
    changed = growth.new != growth.old or any(m.gate for m in growth.maps.values())
    return changed and State.MASTER in source.readers


def _reader(source: Checkpoint, growth: Growth, state: State) -> LogicalReader:
    """Where a state's old values come from."""
    from_masters = state is State.WEIGHT and _of_masters(source, growth)
    return source.readers[State.MASTER if from_masters else state]


class ModelValues:
    """Computes any box of any state of the grown model."""

    def __init__(self, growth: Growth, source: Checkpoint, init_std: float | None = None) -> None:
        self.weights = GrownValues(growth, _reader(source, growth, State.WEIGHT), init_std)
        self._values = {State.WEIGHT: self.weights}
        self._tensors = {State.WEIGHT: logical_tensors(growth.new)}
        plain = {n: replace(t, shift=0.0) for n, t in self._tensors[State.WEIGHT].items()}
        for state in source.state_readers:
            power = state.gradient_power
            moved = moment_growth(growth, power) if power else growth
            self._values[state] = GrownValues(moved, _reader(source, growth, state), init_std)
            self._tensors[state] = plain if power else self._tensors[State.WEIGHT]

        self._reset = growth.moments is Moments.RESET
        # A trainer casts its masters. Version 1 of what is drawn cast the same values on its own,
        # and rounded some of them to the other side.
        self._cast = growth.draw > 1 and _of_masters(source, growth)
        known = None if source.optimizer is None else carried(source.optimizer, growth)
        self._lags = {} if known is None else known.lags
        self._weight_dtype = DTYPES[source.dtype]

    def keep(self, kept: KeptStatistics) -> None:
        """Take the spreads and means that an earlier run has kept, and keep those to come."""
        for state, values in self._values.items():
            values.keep(kept, state)

    def box(self, state: State, name: str, box: Box, dtype: np.dtype[Any]) -> Array:
        """Return the values of ``box`` of a state of tensor ``name``, in the box's shape."""
        if self._reset and state.gradient_power:
            return np.zeros(box.shape, dtype)
        values, tensor = self._values[state], self._tensors[state][name]
        if state is State.MASTER and self._has_none(name, box):
            return self.box(State.WEIGHT, name, box, self._weight_dtype).astype(dtype)
        if state is State.WEIGHT and self._cast:
            return values.box(tensor, box, MASTER).astype(dtype)
        return values.box(tensor, box, dtype)

    def _has_none(self, name: str, box: Box) -> bool:
        """Whether what a box, of one layer, is in has no state: its weight is its master."""
        if not self._lags:
            return False
        layer = box.ranges[0][0] if self._tensors[State.WEIGHT][name].layered else None
        return self._lags.get((name, layer), 0) is None
