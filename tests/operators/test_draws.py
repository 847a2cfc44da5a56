import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from strategies import examples

from flmgrow.operators.draws import normal, split_weights


def indices(*spans: tuple[int, int]) -> list[np.ndarray[tuple[int], np.dtype[np.int64]]]:
    return [np.arange(start, stop, dtype=np.int64) for start, stop in spans]


spans = st.tuples(st.integers(0, 9), st.integers(1, 6)).map(lambda s: (s[0], s[0] + s[1]))


@examples(100)
@given(spans, spans, spans)
def test_a_part_is_a_slice_of_the_whole(
    a: tuple[int, int], b: tuple[int, int], c: tuple[int, int]
) -> None:
    whole = normal(3, "up", indices((0, 16), (0, 16), (0, 16)))
    part = normal(3, "up", indices(a, b, c))
    assert (part == whole[slice(*a), slice(*b), slice(*c)]).all()


def test_the_values_are_these_and_stay_these() -> None:
    """A grown checkpoint must come out the same in every later version."""
    known = [0.10283714532852173, -0.022236373275518417, 0.5041883587837219]
    values = normal(0, "embedding", indices((0, 1), (0, 3)))[0]
    assert values.tolist() == pytest.approx(known, abs=0)


def test_moments_are_those_of_a_normal_distribution() -> None:
    values = normal(1, "query", indices((0, 8), (0, 250), (0, 250))).reshape(-1)
    error = len(values) ** -0.5
    assert abs(values.mean()) < 4 * error
    assert abs(values.var() - 1) < 6 * error
    assert abs((values**3).mean()) < 4 * error * 15**0.5
    assert abs((values**4).mean() - 3) < 4 * error * 96**0.5
    assert np.abs(values).max() < 6.8
    assert len(np.unique(values)) > 0.95 * len(values)


@pytest.mark.parametrize("other", [(2, "query"), (1, "key"), (11, "uery")])
def test_another_seed_or_name_draws_independently(other: tuple[int, str]) -> None:
    box = indices((0, 200), (0, 200))
    first, second = normal(1, "query", box), normal(*other, box)
    assert not (first == second).any()
    assert abs((first * second).mean()) < 4 / 200


@pytest.mark.parametrize(("rows", "columns"), [(1, 0), (0, 1), (1, 1), (0, 100)])
def test_neighbours_are_independent(rows: int, columns: int) -> None:
    first = normal(0, "down", indices((0, 300), (0, 300)))
    second = normal(0, "down", indices((rows, 300 + rows), (columns, 300 + columns)))
    assert abs((first * second).mean()) < 4 / 300


def test_transposed_indices_draw_other_values() -> None:
    square = normal(0, "down", indices((0, 50), (0, 50)))
    assert (square == square.T).sum() == 50


@examples(100)
@given(st.integers(1, 12), st.integers(0, 30), st.integers(0, 3))
def test_split_weights_sum_to_one_over_copies(old: int, more: int, seed: int) -> None:
    source = np.arange(old + more, dtype=np.int64) % old
    weights = split_weights(seed, "ffn", source)
    sums = np.bincount(source, weights)
    assert np.abs(sums - 1).max() < 1e-15 * (2 + more)
    counts = np.bincount(source)
    assert (weights[counts[source] == 1] == 1).all()
    for index in range(old):
        own = weights[source == index]
        assert own.max() <= 3 * own.min()
        assert len(set(own.tolist())) == len(own)


def test_an_index_without_a_source_is_not_split() -> None:
    weights = split_weights(0, "ffn", np.array([0, 1, 0, -1, -1], np.int64))
    assert weights[3:].tolist() == [1, 1]
    assert weights[0] + weights[2] == pytest.approx(1, abs=1e-15)
