"""The package scipy, of which some commands need a part: found when it is used."""

from importlib import import_module
from typing import Any

from flmgrow.errors import UsageError


def scipy(part: str) -> Any:
    """Return a module of scipy, such as ``stats``.

    Raises:
        UsageError: If it is not installed.
    """
    try:
        return import_module(f"scipy.{part}")
    except ModuleNotFoundError:
        raise UsageError(
            "the package scipy is not installed", "pip install 'flmgrow[predict]'"
        ) from None
