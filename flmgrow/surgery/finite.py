"""Values that are not finite, found quickly."""

import numpy as np

from flmgrow.formats.reading import DTYPES, Array


def non_finite(values: Array) -> int:
    """Return how many entries are not finite.

    On the bits, which is an order faster for bfloat16.
    """
    if values.dtype == DTYPES["bfloat16"]:
        bits = values.reshape(-1).view(np.uint16) & np.uint16(0x7FFF)
        return int((bits >= 0x7F80).sum())
    return int(values.size - np.isfinite(values).sum())
