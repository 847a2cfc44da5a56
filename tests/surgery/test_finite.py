"""Values that are not finite are counted on their bits; numpy counts them here on the values."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from strategies import examples

from flmgrow.formats.pieces import DTYPES
from flmgrow.surgery.finite import non_finite


@pytest.mark.parametrize("dtype", DTYPES)
@examples(50)
@given(data=st.data())
def test_any_bits(dtype: str, data: st.DataObject) -> None:
    kind = DTYPES[dtype]
    count = data.draw(st.integers(0, 9))
    raw = data.draw(st.binary(min_size=count * kind.itemsize, max_size=count * kind.itemsize))
    values = np.frombuffer(raw, f"u{kind.itemsize}").view(kind)
    assert non_finite(values) == count - np.isfinite(values.astype(np.float64)).sum()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("wrong", [np.inf, -np.inf, np.nan, -np.nan])
def test_one_among_many_in_any_order_of_axes(dtype: str, wrong: float) -> None:
    values = np.full((3, 5, 7), -1.5, DTYPES[dtype])
    assert non_finite(values) == 0
    values[1, 2, 3] = wrong
    assert non_finite(values) == non_finite(values.transpose(2, 0, 1)) == 1


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_largest_and_the_smallest_values_are_finite(dtype: str) -> None:
    one = np.array(np.inf, DTYPES[dtype]).view(f"u{DTYPES[dtype].itemsize}") - 1
    largest = one.view(DTYPES[dtype])
    values = np.array([largest, -largest, 0.0, -0.0], DTYPES[dtype])
    assert np.isfinite(values.astype(np.float64)).all()
    assert non_finite(values) == 0
