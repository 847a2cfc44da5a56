"""Parameters of which some are tried by every run of the slow tests, and the rest by the long."""

from collections.abc import Iterable
from typing import Any

import pytest


def often(names: Iterable[str], *always: str) -> list[Any]:
    """Return ``names`` as a test's parameters: long, but for those that are ``always`` tried."""
    listed = list(names)
    assert set(always) <= set(listed)
    return [
        name if name in always else pytest.param(name, marks=pytest.mark.long) for name in listed
    ]
