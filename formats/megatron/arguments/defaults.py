"""Every argument of Megatron-LM, with the default it has in each of nine versions.

``defaults.json`` holds them: per argument, runs of ``[default, first version, last
version]``. They are what a GPT's training holds when nothing but its sizes is given, after
Megatron-LM has derived one argument from another. Sizes themselves and what depends on the machine
(ranks, Transformer Engine) are not among them. A value that JSON has no word for stands as Python
prints it.

To add a version, take ``vars(parse_args())`` of its ``megatron.training.arguments`` after
``validate_args``, and lengthen or begin the runs.
"""

import functools
import json
from collections.abc import Mapping
from importlib import resources

_FILE = "defaults.json"


@functools.cache
def _table() -> Mapping[str, Mapping[str, list[tuple[object, str, str]]]]:
    text = resources.files(__package__).joinpath(_FILE).read_text(encoding="utf-8")
    table: Mapping[str, Mapping[str, list[tuple[object, str, str]]]] = json.loads(text)
    return table


def versions() -> list[str]:
    """Return the versions of Megatron-LM that the table covers, oldest first."""
    return list(_table()["versions"])


@functools.cache
def defaults() -> Mapping[str, tuple[object, ...]]:
    """Return, for every argument that some version has, its defaults."""
    runs = _table()["defaults"]
    return {name: tuple(value for value, _, _ in found) for name, found in runs.items()}


def defaults_of(version: str) -> dict[str, object]:
    """Return the arguments of one version at their defaults.

    Raises:
        ValueError: For an unknown version.
    """
    order = versions()
    place = order.index(version)
    return {
        name: value
        for name, found in _table()["defaults"].items()
        for value, first, last in found
        if order.index(first) <= place <= order.index(last)
    }
