"""The values of every state of a grown model: weights, their masters, and Adam's moments."""

from dataclasses import replace
from typing import Any

import numpy as np

from flmgrow.formats.checkpoint import Checkpoint
from flmgrow.formats.reading import Array, LogicalReader
from flmgrow.model.axes import Box
from flmgrow.model.states import State
from flmgrow.model.tensors import logical_tensors
from flmgrow.operators.choices import Moments
from flmgrow.operators.growth import Growth
from flmgrow.operators.moments import moment_growth
from flmgrow.surgery.values import GrownValues


def _reader(source: Checkpoint, growth: Growth, state: State) -> LogicalReader:
    """Where a state's old values come from: a growth computes weights from the float32 masters.

    Without one (and without masks to bake) they are copied as they are, so that resharding is
    bit-equal.
    """
    readers = source.readers
    changed = growth.new != growth.old or any(m.gate for m in growth.maps.values())
    computed = state is State.WEIGHT and changed
    return readers.get(State.MASTER, readers[state]) if computed else readers[state]


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

    def box(self, state: State, name: str, box: Box, dtype: np.dtype[Any]) -> Array:
        """Return the values of ``box`` of a state of tensor ``name``, in ``dtype``."""
        if self._reset and state.gradient_power:
            return np.zeros(box.shape, dtype)
        return self._values[state].box(self._tensors[state][name], box, dtype)
