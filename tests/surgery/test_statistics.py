"""Sums that are the same to the last bit however their vectors are read."""

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from flmgrow.surgery import statistics
from flmgrow.surgery.statistics import SPAN, _sum


def summed(vector: NDArray[np.float64]) -> float:
    """Sum a vector by the order that files of earlier versions were made with, in plain Python."""
    total = 0.0
    for start in range(0, len(vector), SPAN):
        span = [float(x) for x in vector[start : start + SPAN]]
        eighths = len(span) // 8 * 8
        lanes = [0.0] * 8
        for i, value in enumerate(span[:eighths]):
            lanes[i % 8] = value if i < 8 else lanes[i % 8] + value
        a, b, c, d, e, f, g, h = lanes
        part = ((a + b) + (c + d)) + ((e + f) + (g + h)) if eighths else 0.0
        for value in span[eighths:]:
            part += value
        total += part
    return total


DTYPES = (np.float64, np.float32, ml_dtypes.bfloat16)


@given(
    before=st.integers(1, 3),
    length=st.one_of(st.integers(1, 20), st.integers(120, 300)),
    after=st.integers(1, 9),
    seed=st.integers(0, 99),
    piece=st.sampled_from([1, 300, statistics.PIECE]),
    dtype=st.sampled_from(DTYPES),
)
def test_a_vector_has_one_sum_whichever_axis_it_lies_on(
    before: int, length: int, after: int, seed: int, piece: int, dtype: type
) -> None:
    shape = (before, length, after)
    values: NDArray[np.float64] = np.random.default_rng(seed).standard_normal(shape).astype(dtype)
    wanted = np.apply_along_axis(summed, 1, values.astype(np.float64))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(statistics, "PIECE", piece)
        inside = _sum(values, 1)
        last = _sum(np.ascontiguousarray(np.moveaxis(values, 1, -1)), -1)
    assert inside.shape == (before, 1, after)
    assert np.array_equal(inside[:, 0], wanted)
    assert np.array_equal(last[..., 0], wanted)


def test_the_order_matters() -> None:
    """Else the test above would pass for any sum."""
    values: NDArray[np.float64] = np.random.default_rng(0).standard_normal((1, 4 * SPAN, 64))
    plain = np.apply_along_axis(lambda vector: sum(vector.tolist()), 1, values)
    assert not np.array_equal(_sum(values, 1)[:, 0], plain)
