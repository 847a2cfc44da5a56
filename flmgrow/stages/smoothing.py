"""A curve without the noise of its values."""

import numpy as np
from numpy.typing import NDArray

from flmgrow.model.arrays import FloatArray


def smooth(values: FloatArray, half: int) -> FloatArray:
    """Return the value (n,) of a straight line fitted to each of ``values`` (n,) and ``half``
    neighbours each way.

    Where there are fewer on one side the line still passes through the middle of the trend, which
    a mean would not: the ends of a falling curve are neither lifted nor flattened.
    """
    places = np.arange(len(values))
    low, high = np.maximum(places - half, 0), np.minimum(places + half + 1, len(values))
    count = (high - low).astype(np.float64)
    middle = (low + high - 1) / 2
    mean = _window_sums(values, low, high) / count
    cross = _window_sums(values * places, low, high) - middle * mean * count
    spread = count * (count * count - 1) / 12
    slope = np.divide(cross, spread, out=np.zeros(len(values)), where=count > 1)
    result: FloatArray = mean + slope * (places - middle)
    return result


def _window_sums(values: FloatArray, low: NDArray[np.int_], high: NDArray[np.int_]) -> FloatArray:
    sums = np.concatenate([[0.0], np.cumsum(values)])
    result: FloatArray = sums[high] - sums[low]
    return result
