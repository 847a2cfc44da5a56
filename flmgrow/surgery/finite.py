"""Values that are not finite, found quickly.

Every value that is written is looked at, so it is done on bits, as integers: without its sign, a
float is infinite or not a number if its bits are at least those of infinity.
"""

import numpy as np

from flmgrow.model.arrays import Array


def non_finite(values: Array) -> int:
    """Return how many entries are not finite of ``values``, of any shape."""
    unsigned, signed = f"u{values.itemsize}", f"i{values.itemsize}"
    bits = values.view(unsigned)
    infinities = np.array([np.inf, -np.inf], values.dtype).view(unsigned)
    plus, minus = infinities
    # Most blocks have none: the largest of either sign says so, and nothing is written down.
    if not bits.size or (bits.view(signed).max() < plus.astype(signed) and bits.max() < minus):
        return 0
    return int(((bits & ~(plus ^ minus)) >= plus).sum())
