import hashlib
from statistics import NormalDist

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from strategies import examples

from flmgrow.operators import draws
from flmgrow.operators.draws import DRAWS, normal, split_weights

Values = np.ndarray[tuple[int, ...], np.dtype[np.float64]]

KNOWN_2 = [-0.5595963597297668, -1.3631999492645264, -0.5497061610221863]
TABLE_2 = "9279f66b37f571385d7bff3dd677bdaa295af45e843b20608118a4e867ac26db"


def indices(*spans: tuple[int, int]) -> list[np.ndarray[tuple[int], np.dtype[np.int64]]]:
    return [np.arange(start, stop, dtype=np.int64) for start, stop in spans]


spans = st.tuples(st.integers(0, 9), st.integers(1, 6)).map(lambda s: (s[0], s[0] + s[1]))


@pytest.mark.parametrize("draw", sorted(DRAWS))
@examples(50)
@given(spans, spans, spans)
def test_a_part_is_a_slice_of_the_whole(
    draw: int, a: tuple[int, int], b: tuple[int, int], c: tuple[int, int]
) -> None:
    whole = normal(3, "up", indices((0, 16), (0, 16), (0, 16)), draw)
    part = normal(3, "up", indices(a, b, c), draw)
    assert (part == whole[slice(*a), slice(*b), slice(*c)]).all()


@pytest.mark.parametrize(("draw", "known"), [
    (1, [0.10283714532852173, -0.022236373275518417, 0.5041883587837219]),
    (2, KNOWN_2),
])  # fmt: skip
def test_the_values_are_these_and_stay_these(draw: int, known: list[float]) -> None:
    """A grown checkpoint must come out the same in every later version."""
    values = normal(0, "embedding", indices((0, 1), (0, 3)), draw)[0]
    assert values.tolist() == pytest.approx(known, abs=0)


def test_the_table_is_this_and_stays_this() -> None:
    """Its entries are rounded so far that mathematical libraries cannot differ in them."""
    digest = hashlib.sha256(b"".join(part.tobytes() for part in draws._quantiles()))
    assert digest.hexdigest() == TABLE_2


@pytest.mark.parametrize("draw", sorted(DRAWS))
def test_moments_are_those_of_a_normal_distribution(draw: int) -> None:
    values = normal(1, "query", indices((0, 8), (0, 500), (0, 500)), draw).reshape(-1)
    error = len(values) ** -0.5
    assert abs(values.mean()) < 4 * error
    assert abs(values.var() - 1) < 4 * error * 2**0.5
    assert abs((values**3).mean()) < 4 * error * 15**0.5
    assert abs((values**4).mean() - 3) < 4 * error * 96**0.5
    assert abs((values**6).mean() - 15) < 4 * error * 10170**0.5
    assert np.abs(values).max() < (6.8 if draw == 1 else 6.4)
    assert len(np.unique(values)) > 0.9 * len(values)


@pytest.mark.parametrize("draw", sorted(DRAWS))
def test_every_thousandth_holds_as_many_and_so_do_the_tails(draw: int) -> None:
    """By the chi-square of a thousand cells, and by the counts beyond 3, 4 and 5 either way."""
    values = normal(2, "up", indices((0, 4), (0, 1000), (0, 1000)), draw).reshape(-1)
    normal_law = NormalDist()
    bounds = [normal_law.inv_cdf(i / 1000) for i in range(1, 1000)]
    found = np.bincount(np.searchsorted(bounds, values), minlength=1000)
    wanted = len(values) / 1000
    chi_square = float(((found - wanted) ** 2 / wanted).sum())
    assert abs(chi_square - 999) < 4 * (2 * 999) ** 0.5
    for bound in (3, 4, 5):
        beyond = len(values) * normal_law.cdf(-bound)
        for count in ((values > bound).sum(), (values < -bound).sum()):
            assert abs(count - beyond) < 4 * beyond**0.5 + 1


def test_the_law_is_exact_to_four_digits() -> None:
    """All hashes that there are, evenly thinned out: no chance is left in these."""
    state = np.arange(512, 1 << 32, 1025, dtype=np.uint64) << np.uint64(32)
    values = draws._interpolated(state).astype(np.float64)
    for power, moment in ((1, 0), (2, 1), (3, 0), (4, 3)):
        assert (values**power).mean() == pytest.approx(moment, rel=5e-4, abs=2e-5)
    assert values.var() == pytest.approx(1, abs=1e-4)
    ends = draws._interpolated(np.array([0, 1 << 63], np.uint64))
    assert ends == pytest.approx(np.array([1, -1]) * -NormalDist().inv_cdf(2.0**-33), rel=1e-6)
    # One sign and then the other: what is larger has the smaller probability.
    half = values[: len(values) // 2]
    assert (np.diff(half) <= 1e-6).all()


@pytest.mark.parametrize("draw", sorted(DRAWS))
@pytest.mark.parametrize(
    "other", [(2, "query"), (1, "key"), (11, "uery"), (1, "query noise"), (-1, "query")]
)
def test_another_seed_or_name_draws_independently(other: tuple[int, str], draw: int) -> None:
    box = indices((0, 400), (0, 400))
    independent(normal(1, "query", box, draw), normal(*other, box, draw))


@pytest.mark.parametrize("draw", sorted(DRAWS))
@pytest.mark.parametrize(
    ("layers", "rows", "columns"),
    [(1, 0, 0), (0, 1, 0), (0, 0, 1), (0, 1, 1), (1, 1, 0), (0, 0, 100), (0, 64, 0), (7, 0, 0)],
)
def test_neighbours_are_independent(layers: int, rows: int, columns: int, draw: int) -> None:
    first = normal(0, "down", indices((0, 1), (0, 400), (0, 400)), draw)
    spans = [(shift, shift + n) for shift, n in ((layers, 1), (rows, 400), (columns, 400))]
    independent(first, normal(0, "down", indices(*spans), draw))


def independent(first: Values, second: Values) -> None:
    """Neither their values nor their sizes go together; and no value is there twice in a place."""
    error = first.size**-0.5
    assert (first == second).mean() < 1e-4
    assert abs((first * second).mean()) < 4 * error
    assert abs(((first**2 - 1) * (second**2 - 1)).mean()) < 4 * 2 * error
    assert abs((first * (second**2 - 1)).mean()) < 4 * 2**0.5 * error


def test_equal_draws_are_not_independent() -> None:
    """The test of independence can fail: a row beside itself, and beside its mirror image."""
    values = normal(0, "down", indices((0, 400), (0, 400)))
    for other in (values, -values, np.abs(values)):
        with pytest.raises(AssertionError):
            independent(values, other)


def test_transposed_indices_draw_other_values() -> None:
    for draw in DRAWS:
        square = normal(0, "down", indices((0, 50), (0, 50)), draw)
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
