import argparse
import collections
import enum
import io
import math
import pathlib
import pickle
import random
import signal
import sys
import types
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from inert_pickles import read, rewritten, watching

from flmgrow.errors import BadCheckpointError
from flmgrow.formats.torch_file.objects import enum_value, make_namespace, namespace
from flmgrow.formats.torch_file.pickler import to_pickle
from flmgrow.formats.torch_file.values import Global, Opaque, OrderedMap


@pytest.fixture
def watched() -> Iterator[list[str]]:
    with watching() as events:
        yield events


# --- plain data

scalars: st.SearchStrategy[object] = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(allow_nan=False),
    st.text(),
    st.binary(),
    st.builds(bytearray, st.binary()),
)
keys = st.text() | st.integers() | st.tuples(st.text(), st.integers()) | st.binary()
plain_data = st.recursive(
    scalars | st.sets(st.integers() | st.text()) | st.frozensets(st.integers()),
    lambda inner: (
        st.lists(inner, max_size=5)
        | st.lists(inner, max_size=5).map(tuple)
        | st.dictionaries(keys, inner, max_size=5)
    ),
    max_leaves=20,
)


@given(plain_data, st.integers(2, 5))
def test_plain_data_round_trips(data: object, protocol: int) -> None:
    inert = read(pickle.dumps(data, protocol))
    assert inert == data
    written, storages = to_pickle(inert)
    assert pickle.loads(written) == data
    assert read(written) == data
    assert storages == []


@pytest.mark.parametrize(
    "number",
    [0, 255, 256, 65535, 65536, -1, 2**31 - 1, -(2**31), 2**31, 2**63, -(2**100), 1 << 5000],
)
def test_integers_of_every_width(number: int) -> None:
    assert rewritten(number) == number
    assert read(pickle.dumps(number, 2)) == number


def test_types_are_kept() -> None:
    for value in (True, 1, 1.0, "1", b"1", bytearray(b"1"), (1,), [1], {1}, frozenset([1]), -0.0):
        assert type(rewritten(value)) is type(value)
    assert math.isnan(rewritten(math.nan))
    assert rewritten("\udc80") == "\udc80"


def test_what_was_shared_stays_shared() -> None:
    shared = [1]
    one, two = rewritten([shared, shared])
    assert one is two
    circle: list[object] = [1]
    circle.append((circle, {"again": circle}))
    copy = rewritten(circle)
    assert copy[1][0] is copy
    assert copy[1][1]["again"] is copy


def test_large_data_needs_long_references() -> None:
    data = [[(f"name {number}", number)] for number in range(1000)] * 2
    assert rewritten(data) == data


def test_the_same_data_give_the_same_bytes() -> None:
    names = [f"name{number}" for number in range(50)]
    written = {to_pickle(set(random.Random(seed).sample(names, 50)))[0] for seed in range(20)}
    assert len(written) == 1


def test_ordered_dict_keeps_its_attributes() -> None:
    original = collections.OrderedDict(b=1, a=2)
    original._metadata = {"": {"version": 1}}  # type: ignore[attr-defined]
    inert = read(pickle.dumps(original, 2))
    assert type(inert) is OrderedMap
    assert inert == {"b": 1, "a": 2}
    assert inert.state == {"_metadata": {"": {"version": 1}}}
    copy: Any = rewritten(original)
    assert type(copy) is collections.OrderedDict
    assert list(copy) == ["b", "a"]
    assert vars(copy)["_metadata"] == {"": {"version": 1}}


# --- objects of classes


class Colour(enum.Enum):
    RED = 1
    BLUE = "blue"


class Settings:
    def __init__(self) -> None:
        self.hidden_size = 64

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Settings) and vars(other) == vars(self)

    __hash__ = None  # type: ignore[assignment]


class Names(list[str]):
    pass


@pytest.fixture(autouse=True)
def importable(monkeypatch: pytest.MonkeyPatch) -> None:
    """Lets pickle find the classes of this file, which pytest imports under a name of its own."""
    module = types.ModuleType("megatron_like")
    for kind in (Colour, Settings, Names):
        monkeypatch.setattr(kind, "__module__", module.__name__)
        setattr(module, kind.__name__, kind)
    monkeypatch.setitem(sys.modules, module.__name__, module)


def opaque_objects() -> list[object]:
    counted: collections.defaultdict[str, list[int]] = collections.defaultdict(list)
    counted["a"].append(1)
    names = Names(["x", "y"])
    names.extra = 3  # type: ignore[attr-defined]
    return [
        signal.Signals.SIGTERM,
        pathlib.PurePosixPath("/data/tokens"),
        argparse.Namespace(hidden_size=64, bf16=True),
        types.SimpleNamespace(a=1),
        np.float32(1.5),
        np.dtype("int64"),
        complex(1, 2),
        range(3),
        counted,
        collections.Counter("abca"),
        Settings(),
        Colour.RED,
        names,
        len,
    ]


@pytest.mark.parametrize("value", opaque_objects(), ids=lambda value: type(value).__name__)
def test_objects_go_back_unchanged(value: object, watched: list[str]) -> None:
    data = pickle.dumps(value, 2)
    watched.clear()
    inert = read(data)
    written, _ = to_pickle(inert)
    assert watched == []
    assert type(inert) in (Opaque, Global)
    copy = pickle.loads(written)
    assert type(copy) is type(value)
    assert copy == value
    assert getattr(copy, "__dict__", None) == getattr(value, "__dict__", None)


def test_arrays_and_random_states_go_back_unchanged() -> None:
    array = np.arange(6, dtype=np.float32).reshape(2, 3)
    np.testing.assert_array_equal(rewritten(array), array)
    state = ("random", random.getstate(), np.random.RandomState(3).get_state())
    copy = rewritten(state)
    assert copy[1] == state[1]
    np.testing.assert_array_equal(copy[2][1], state[2][1])  # type: ignore[index]
    assert rewritten(io.BytesIO(b"extra state")).read() == b"extra state"


def test_namespace_is_read_and_changed() -> None:
    inert = read(pickle.dumps(argparse.Namespace(hidden_size=64, colour=Colour.RED), 2))
    settings_ = namespace(inert)
    assert settings_["hidden_size"] == 64
    settings_["hidden_size"] = 128
    copy = pickle.loads(to_pickle(inert)[0])
    assert copy == argparse.Namespace(hidden_size=128, colour=Colour.RED)
    assert namespace(read(pickle.dumps(types.SimpleNamespace(a=1), 2))) == {"a": 1}
    assert namespace(read(pickle.dumps(argparse.Namespace(), 2))) == {}
    made = make_namespace({"a": [1]})
    assert namespace(made) == {"a": [1]}
    assert pickle.loads(to_pickle(made)[0]) == argparse.Namespace(a=[1])


@pytest.mark.parametrize("value", [3, {"a": 1}, pathlib.PurePosixPath("/a"), None])
def test_namespace_refuses_other_things(value: object) -> None:
    with pytest.raises(BadCheckpointError, match=r"wanted an argparse\.Namespace"):
        namespace(read(pickle.dumps(value, 2)))


def test_enum_values() -> None:
    assert enum_value(read(pickle.dumps(Colour.RED, 2))) == 1
    assert enum_value(read(pickle.dumps(Colour.BLUE, 2))) == "blue"
    assert enum_value(read(pickle.dumps(signal.Signals.SIGINT, 2))) == 2
    for other in (3, "blue", Settings(), [Colour.RED], range(3)):
        assert enum_value(read(pickle.dumps(other, 2))) is None


def test_writing_refuses_what_is_not_inert() -> None:
    with pytest.raises(TypeError, match="Settings is not an inert value"):
        to_pickle({"a": Settings()})
