"""Draws are what their names say, uniform, and the same for ever."""

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flmgrow.evaluation.tasks.draws import Draws

names = st.lists(st.integers() | st.text(), max_size=3)


@given(names=names, count=st.integers(0, 9))
def test_a_sample_is_of_different_values(names: list[int | str], count: int) -> None:
    found = Draws(*names).sample(range(9), count)
    assert len({*found}) == len(found) == count
    assert found == Draws(*names).sample(range(9), count)
    assert sorted(Draws(*names).shuffled(range(9))) == [*range(9)]


@given(names=names, first=st.integers(-5, 5), span=st.integers(0, 5))
def test_a_number_is_in_its_range(names: list[int | str], first: int, span: int) -> None:
    draws = Draws(*names)
    found = {draws.between(first, first + span) for _ in range(200)}
    assert found <= {*range(first, first + span + 1)}


def test_all_orders_are_as_likely() -> None:
    """24 orders, 200 of each to be expected; chi squared with 23 degrees of freedom."""
    counts = Counter(tuple(Draws("orders", n).shuffled("abcd")) for n in range(4800))
    assert len(counts) == 24
    assert sum((count - 200) ** 2 / 200 for count in counts.values()) < 49.7  # one in a thousand


@pytest.mark.parametrize(
    ("one", "other"), [((1, "2"), ("1", 2)), (("ab",), ("a", "b")), ((), (0,))]
)
def test_names_are_told_apart(one: tuple[int | str, ...], other: tuple[int | str, ...]) -> None:
    assert Draws(*one).text("ab", 64) != Draws(*other).text("ab", 64)


def test_they_are_the_same_for_ever() -> None:
    draws = Draws("task", 7)
    assert (draws.text("abcdef", 8), draws.below(1000), draws.sample(range(99), 3)) == (
        "fbefbead",
        505,
        [78, 61, 18],
    )
