"""What of a checkpoint is older than its last growth, entry by entry."""

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

import flmgrow
from flmgrow.formats.history.fresh import fresh_of


def old_entries(path: Path) -> dict[str, NDArray[np.bool_]]:
    """Return which entries are none of the last growth's, one index after the other."""
    with flmgrow.open(path) as source:
        fresh = {
            str(axis): set(found.tolist()) for axis, found in fresh_of(source.checkpoint).items()
        }
        assert fresh
        result = {}
        for name in source.tensors:
            tensor = source.tensor(name)
            found = np.ones(np.array(tensor.values).shape, bool)
            for place, axis in enumerate(tensor.axes):
                for index in fresh.get(str(axis), ()):
                    found[(slice(None),) * place + (index,)] = False
            result[name] = found
    return result
