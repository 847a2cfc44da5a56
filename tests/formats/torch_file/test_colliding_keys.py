"""Keys chosen to have one hash make a dict slow beyond any use; files with them are refused."""

import pickle
import sys
import time
from collections.abc import Callable

import pytest

from flmgrow.errors import BadCheckpointError, UsageError
from flmgrow.formats.torch_file.bounds import MAX_ALIKE
from flmgrow.formats.torch_file.unpickler import unpickle
from flmgrow.storage.strict_json import parse_object
from flmgrow.storage.strict_yaml import parse_yaml

MODULUS = sys.hash_info.modulus
COUNT = 20_000
QUICKLY = 5.0
"""Seconds of processor time; to put so many of them into one dict takes longer than a minute."""

KEYS: dict[str, Callable[[int], object]] = {
    "whole numbers": lambda n: (n + 1) * MODULUS,
    "negative ones": lambda n: -(n + 1) * MODULUS,
    "tuples": lambda n: ((n + 1) * MODULUS, 1),
    "nested tuples": lambda n: ("x", (((n + 1) * MODULUS,),)),
    "sets": lambda n: frozenset([(n + 1) * MODULUS]),
}


def encoded(values: list[object]) -> bytes:
    return b"".join(pickle.dumps(value, 3)[2:-1] for value in values)


def program(body: bytes) -> bytes:
    return pickle.PROTO + b"\4" + body + pickle.STOP


CONTAINERS: dict[str, Callable[[list[object]], bytes]] = {
    "a dict": lambda keys: b"}(" + b"".join(encoded([k]) + b"N" for k in keys) + b"u",
    "a dict, one by one": lambda keys: b"}" + b"".join(encoded([k]) + b"Ns" for k in keys),
    "an OrderedDict": lambda keys: pickle.GLOBAL + b"collections\nOrderedDict\n)R("
    + b"".join(encoded([k]) + b"N" for k in keys) + b"u",
    "a set": lambda keys: pickle.EMPTY_SET + b"(" + encoded(keys) + pickle.ADDITEMS,
    "a set that is called": lambda keys: pickle.GLOBAL + b"builtins\nset\n](" + encoded(keys)
    + b"e\x85R",
    "a frozenset": lambda keys: b"(" + encoded(keys) + pickle.FROZENSET,
}  # fmt: skip


@pytest.mark.parametrize("container", CONTAINERS)
@pytest.mark.parametrize("kind", KEYS)
def test_they_are_refused_soon(kind: str, container: str) -> None:
    keys = [KEYS[kind](number) for number in range(COUNT if kind == "whole numbers" else 200)]
    data = program(CONTAINERS[container](keys))
    begin = time.process_time()
    with pytest.raises(BadCheckpointError, match=f"more than {MAX_ALIKE} keys chosen to have"):
        unpickle(data, "file", {})
    assert time.process_time() - begin < QUICKLY


@pytest.mark.parametrize("container", CONTAINERS)
def test_honest_keys_pass(container: str) -> None:
    honest: list[object] = [*range(-300, 3000), *(f"k{n}" for n in range(300))]
    honest += [n + 0.5 for n in range(300)]
    honest += [n * 2**70 + 1 for n in range(1, 300)]
    honest += [(n, "x", None) for n in range(300)]
    found = unpickle(program(CONTAINERS[container](honest)), "file", {})
    assert isinstance(found, dict | set | frozenset)
    assert set(found) == set(honest)


def test_a_key_that_takes_long_to_hash_is_refused() -> None:
    with pytest.raises(BadCheckpointError, match="as key of a dict"):
        unpickle(program(CONTAINERS["a dict"]([1 << 5000])), "file", {})


def test_yaml() -> None:
    lines = "".join(f"{(n + 1) * MODULUS}: 1\n" for n in range(COUNT))
    with pytest.raises(UsageError, match="chosen to have the same hash"):
        parse_yaml(lines.encode(), "file")


def test_json_with_a_key_twice_among_many() -> None:
    """Which it is, is found in one go, and not by counting each among all."""
    text = "{" + ", ".join(f'"{n}": 1' for n in range(300_000)) + ', "x": 1, "x": 2}'
    begin = time.process_time()
    with pytest.raises(BadCheckpointError, match="file: x: stands there twice"):
        parse_object(text.encode(), "file")
    assert time.process_time() - begin < QUICKLY
