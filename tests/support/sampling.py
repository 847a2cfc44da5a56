"""Parameters of which the default run takes some, and CI's slower run all others.

A test that says the same of many cases says most of it with a few.
"""

from collections.abc import Iterable

import pytest
from _pytest.mark import ParameterSet


def sample(cases: Iterable[object], *kept: object) -> list[ParameterSet]:
    """Return all cases; those that are not ``kept`` are slow. Raises ValueError for one of none."""
    found = list(cases)
    if strange := [case for case in kept if case not in found]:
        raise ValueError(f"{strange}: no such cases, wanted some of {found}")
    return [
        pytest.param(*_arguments(case), marks=() if case in kept else pytest.mark.slow)
        for case in found
    ]


def first(count: int, cases: Iterable[object]) -> list[ParameterSet]:
    """Return all cases; those after the first ``count`` are slow."""
    return [
        pytest.param(*_arguments(case), marks=() if number < count else pytest.mark.slow)
        for number, case in enumerate(cases)
    ]


def _arguments(case: object) -> tuple[object, ...]:
    return case if isinstance(case, tuple) else (case,)
