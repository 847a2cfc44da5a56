import argparse
import collections
import enum
import io
import math
import os
import pathlib
import pickle
import random
import signal
import struct
import sys
import types
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flmgrow.errors import BadCheckpointError
from flmgrow.formats.torch_file.unpickler import to_pickle, unpickle
from flmgrow.formats.torch_file.values import (
    MAX_DEPTH,
    Global,
    Opaque,
    OrderedMap,
    SizeTuple,
    Storage,
    StoredBytes,
    TensorRecord,
    enum_value,
    make_namespace,
    namespace,
    walk_tensors,
)
from flmgrow.storage.files import ReadOnlyFile

WATCHED = {"import", "exec", "compile", "open", "os.system", "os.exec", "subprocess.Popen"}
WATCHED |= {"pickle.find_class", "socket.connect", "os.putenv", "os.remove", "os.rename"}
_events: list[str] = []
_is_watching = False


def _hook(event: str, _: tuple[Any, ...]) -> None:
    if _is_watching and event in WATCHED:
        _events.append(event)


@pytest.fixture
def watched() -> Iterator[list[str]]:
    """What the interpreter did, of what reading data should never make it do."""
    global _is_watching
    if not getattr(sys, "_flmgrow_hook", False):
        sys.addaudithook(_hook)  # it cannot be taken off again
        sys._flmgrow_hook = True  # type: ignore[attr-defined]
    unpickle(pickle.dumps([b"x", "y"], 2), "warm up", {})  # lets codecs be imported
    _events.clear()
    _is_watching = True
    yield _events
    _is_watching = False


def read(data: bytes) -> Any:
    return unpickle(data, "some.pt: data.pkl", {})


def rewritten(value: object, protocol: int = 2) -> Any:
    """``value`` after it went through inert data and back."""
    return pickle.loads(to_pickle(read(pickle.dumps(value, protocol)))[0])


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


# --- tensors


@pytest.fixture
def place(tmp_path: pathlib.Path) -> Iterator[StoredBytes]:
    """The bytes of a storage of ten float32."""
    path = tmp_path / "some.pt"
    path.write_bytes(bytes(40))
    file = ReadOnlyFile(path)
    yield StoredBytes(file, "archive/data/0", 0, 40, 0)
    file.close()


def storage_id(**changed: object) -> tuple[object, ...]:
    parts: dict[str, object] = {
        "word": "storage",
        "kind": Global("torch", "FloatStorage"),
        "key": "0",
        "location": "cpu",
        "count": 10,
    }
    return tuple({**parts, **changed}.values())


class _RawStorage:
    """A persistent id with any content; the project's writer would not write such."""

    def __init__(self, identity: tuple[object, ...]) -> None:
        self.identity = identity


def encode(value: object) -> bytes:
    """Instructions that make ``value``; simpler than the project's writer, and unchecked."""
    match value:
        case _RawStorage():
            return encode(value.identity) + pickle.BINPERSID
        case Global():
            return pickle.GLOBAL + f"{value.module}\n{value.name}\n".encode()
        case tuple():
            return pickle.MARK + b"".join(map(encode, value)) + pickle.TUPLE
        case Opaque():
            return encode(value.function) + encode(value.arguments) + pickle.REDUCE
        case _:
            return pickle.dumps(value, 2)[2:-1]


def program(value: object) -> bytes:
    return pickle.PROTO + b"\x02" + encode(value) + pickle.STOP


HOOKS = Opaque("reduce", Global("collections", "OrderedDict"), ())


def tensor_call(
    storage: object = None,
    start: object = 0,
    shape: object = (2, 5),
    stride: object = (5, 1),
    *more: object,
) -> Opaque:
    storage = _RawStorage(storage_id()) if storage is None else storage
    arguments = (storage, start, shape, stride, False, HOOKS, *more)
    return Opaque("reduce", Global("torch._utils", "_rebuild_tensor_v2"), arguments)


def test_a_tensor_is_a_record(place: StoredBytes) -> None:
    record = unpickle(program(tensor_call(None, 1, (3, 2), (3, 1))), "x", {"0": place})
    assert isinstance(record, TensorRecord)
    assert (record.dtype, record.shape, record.stride, record.start) == (
        "float32",
        (3, 2),
        (3, 1),
        1,
    )
    assert (record.itemsize, record.count, record.nbytes, record.offset) == (4, 6, 24, 4)
    assert not record.is_contiguous
    assert record.storage.file is place.file
    assert (record.storage.kind, record.storage.count, record.storage.nbytes) == (
        "FloatStorage",
        10,
        40,
    )


@pytest.mark.parametrize(
    ("call", "found"),
    [
        (tensor_call(None, 0, (2, 6), (6, 1)), "reaches outside its storage"),
        (tensor_call(None, 1), "reaches outside its storage"),
        (tensor_call(None, 0, (2, 5), (6, 1)), "reaches outside its storage"),
        (tensor_call(None, -1, (1,), (1,)), "not a plausible number"),
        (tensor_call(None, 0, (-2, -5), (5, 1)), "not a plausible number"),
        (tensor_call(None, 0, (2, 5), (5, -1)), "not a plausible number"),
        (tensor_call(None, 0, (2.0, 5), (5, 1)), "not a plausible number"),
        (tensor_call(None, True, (1,), (1,)), "not a plausible number"),
        (tensor_call(None, 0, (2, 5), (5,)), "2 sizes and 1 strides"),
        (tensor_call(None, 0, (1,) * 65, (1,) * 65), "65 sizes"),
        (tensor_call(None, 0, (1 << 40, 1 << 40), (0, 0)), "more than"),
        (tensor_call(None, 0, (1 << 62,), (0,)), "not a plausible number"),
        (tensor_call(None, 0, 5, 1), "broken tensor"),
        (tensor_call("0"), "broken tensor"),
        (tensor_call(None, 0, (2, 5), (5, 1), {}, {}), "8 arguments"),
        (tensor_call(_RawStorage(storage_id(count=20))), "record has 40 bytes, 20 x FloatStorage"),
        (tensor_call(_RawStorage(storage_id(count=-1))), "record has 40 bytes"),
        (tensor_call(_RawStorage(storage_id(count=1 << 62))), "record has 40 bytes"),
        (tensor_call(_RawStorage(storage_id(count=True))), "no storage"),
        (tensor_call(_RawStorage(storage_id(key="7"))), "storage '7' has no record"),
        (tensor_call(_RawStorage(storage_id(key=0))), "no storage"),
        (tensor_call(_RawStorage(storage_id(word="module"))), "no storage"),
        (
            tensor_call(_RawStorage(storage_id(kind=Global("os", "system")))),
            "storage '0' is of the unknown kind os.system",
        ),
        (
            (
                tensor_call(),
                tensor_call(_RawStorage(storage_id(kind=Global("torch", "IntStorage")))),
            ),
            "used as FloatStorage and as IntStorage",
        ),
    ],
)
def test_refuses_tensors_that_do_not_fit(call: object, found: str, place: StoredBytes) -> None:
    with pytest.raises(BadCheckpointError) as refusal:
        unpickle(program(call), "some.pt: data.pkl", {"0": place})
    assert found in refusal.value.message
    assert refusal.value.message.startswith("some.pt: data.pkl: ")
    assert refusal.value.hint


def test_an_expanded_tensor_is_shown_as_it_is(place: StoredBytes) -> None:
    call = tensor_call(None, 0, (1 << 40,), (0,))
    record = unpickle(program(call), "x", {"0": place})
    assert isinstance(record, TensorRecord)
    assert record.nbytes > record.storage.nbytes


@pytest.mark.parametrize(
    "call",
    [
        tensor_call(None, 0, (2, 5), (5, 1), {"conj": True}),
        Opaque("reduce", Global("torch._utils", "_rebuild_sparse_tensor"), (1, (tensor_call(),))),
        Opaque(
            "reduce",
            Global("torch._tensor", "_rebuild_from_type_v2"),
            (
                Global("torch._utils", "_rebuild_tensor_v2"),
                Global("transformer_engine", "Float8Tensor"),
                tensor_call().arguments,
                None,
            ),
        ),
    ],
    ids=["conjugated", "sparse", "subclass"],
)
def test_special_tensors_stay_opaque(call: Opaque, place: StoredBytes) -> None:
    inert = unpickle(program(call), "x", {"0": place})
    assert isinstance(inert, Opaque)
    assert inert.function == call.function
    again = unpickle(to_pickle(inert)[0], "x", {"0": place})
    assert isinstance(again, Opaque)
    assert again.function == call.function


def test_storages_come_in_order_of_first_use() -> None:
    one, two = Storage("FloatStorage", 4), Storage("BFloat16Storage", 4)
    data = {
        "a": TensorRecord(two, "bfloat16", (4,), (1,)),
        "b": TensorRecord(one, "float32", (2,), (1,), 2),
        "c": TensorRecord(two, "bfloat16", (2, 2), (1, 2)),
    }
    assert to_pickle(data)[1] == [two, one]


def test_walk_finds_tensors_everywhere() -> None:
    def tensor() -> TensorRecord:
        return TensorRecord(Storage("FloatStorage", 1), "float32", (), ())

    first, second, third, fourth = tensor(), tensor(), tensor(), tensor()
    opaque = Opaque("reduce", Global("some", "kind"), (second,), {"s": third}, [], [("k", fourth)])
    shared = [first]
    data: dict[object, object] = {"model": shared, "again": shared, 3: (opaque,)}
    data["circle"] = data
    assert dict(walk_tensors(data)) == {
        ("model", 0): first,
        (3, 0, "arguments", 0): second,
        (3, 0, "state", "s"): third,
        (3, 0, "pairs", 0, 1): fourth,
    }
    assert list(walk_tensors(first)) == [((), first)]
    assert list(walk_tensors({"a": first, "b": first})) == [(("a",), first), (("b",), first)]


def test_walk_bounds_the_depth() -> None:
    value: object = TensorRecord(Storage("FloatStorage", 1), "float32", (), ())
    for _ in range(MAX_DEPTH + 1):
        value = [value]
    with pytest.raises(BadCheckpointError, match="containers deep"):
        list(walk_tensors(value))


# --- hostile pickles


def binary_name(module: str, name: str) -> bytes:
    parts = (
        pickle.SHORT_BINUNICODE + bytes([len(part)]) + part.encode() for part in (module, name)
    )
    return b"".join(parts) + pickle.STACK_GLOBAL


@pytest.mark.parametrize("protocol", [2, 4])
@pytest.mark.parametrize(
    ("module", "name"),
    [
        ("os", "system"),
        ("posix", "system"),
        ("subprocess", "getoutput"),
        ("builtins", "eval"),
        ("builtins", "exec"),
        ("__builtin__", "eval"),
        ("runpy", "_run_code"),
        ("torch.hub", "load_state_dict_from_url"),
        ("torch.utils.collect_env", "run"),
        ("timeit", "timeit"),
        ("pip", "main"),
        ("importlib", "import_module"),
        ("pty", "spawn"),
        ("numpy.testing._private.utils", "runstring"),
        ("shutil", "rmtree"),
    ],
)
def test_nothing_is_ever_called(
    module: str, name: str, protocol: int, tmp_path: pathlib.Path, watched: list[str]
) -> None:
    canary = tmp_path / "canary"
    known = set(sys.modules)
    named = binary_name(module, name) if protocol == 4 else encode(Global(module, name))
    call = named + encode((f"touch {canary}",)) + pickle.REDUCE
    watched.clear()
    inert = read(pickle.PROTO + bytes([protocol]) + call + pickle.STOP)
    to_pickle(inert)
    assert watched == []
    assert set(sys.modules) == known
    assert not canary.exists()
    assert isinstance(inert, Opaque)
    assert str(inert.function) == f"{module}.{name}"


def test_an_object_that_runs_itself_is_only_data(
    tmp_path: pathlib.Path, watched: list[str]
) -> None:
    canary = tmp_path / "canary"

    class Payload:
        def __reduce__(self) -> tuple[object, ...]:
            return os.system, (f"touch {canary}",)

    data = pickle.dumps({"model": Payload()}, 2)
    watched.clear()
    inert = read(data)
    assert watched == []
    assert not canary.exists()
    assert inert["model"].function == Global("posix", "system")
    pickle.loads(data)  # the canary works
    assert canary.exists()


def test_a_call_for_memory_gets_none() -> None:
    huge = read(program(Opaque("reduce", Global("builtins", "bytearray"), (3_000_000_000,))))
    assert isinstance(huge, Opaque)


def test_far_references_cost_nothing() -> None:
    far = pickle.LONG_BINPUT + b"\xff\xff\xff\x7f"
    assert read(b"\x80\x02]" + far + b".") == []


def test_copies_are_bounded() -> None:
    """A text of 1000 characters, encoded 1000 times over, is more data than the file has."""
    text = pickle.BINUNICODE + struct.pack("<I", 1000) + b"x" * 1000 + pickle.BINPUT + b"\0"
    encoder = pickle.GLOBAL + b"_codecs\nencode\n" + pickle.BINPUT + b"\1"
    latin = encode("latin1")[:-2] + pickle.BINPUT + b"\2"
    call = b"h\1h\0h\2" + pickle.TUPLE2 + pickle.REDUCE
    with pytest.raises(BadCheckpointError, match="copy more data than the file has"):
        read(b"\x80\x02" + b"(" + text + encoder + latin + call * 1000 + b"t.")


def test_tuples_nested_200_000_deep() -> None:
    data = b"\x80\x02)" + pickle.TUPLE1 * 200_000 + b"."
    inert = read(data)
    assert list(walk_tensors(inert)) == []
    written, _ = to_pickle(inert)
    assert len(written) > 200_000
    with pytest.raises(BadCheckpointError, match="as key of a dict"):
        read(b"\x80\x02})" + pickle.TUPLE1 * 200_000 + b"Ns.")


def test_data_shared_sixty_times_over() -> None:
    """Each list holds the one before twice: 2 ** 60 paths, 60 lists."""
    lists = b"]q\x00" + b"".join(
        b"]q%c(h%ch%ce" % (number + 1, number, number) for number in range(60)
    )
    assert list(walk_tensors(read(b"\x80\x02(" + lists + b"t."))) == []
    tuples = b"Nq\x00" + b"".join(
        b"h%ch%c\x86q%c" % (number, number, number + 1) for number in range(60)
    )
    with pytest.raises(BadCheckpointError, match="tuple as key"):
        read(b"\x80\x02(" + tuples + b"}h\x3cNst.")


@pytest.mark.parametrize(
    ("data", "found"),
    [
        (b"", "ends 1 bytes early"),
        (b"\x80\x02", "ends 1 bytes early"),
        (b"N.", "not a pickle of protocol 2 to 5"),
        (b"\x80\x01N.", "not a pickle of protocol 2 to 5"),
        (b"\x80\x06N.", "not a pickle of protocol 2 to 5"),
        (b"\x80\x02.", "a value is missing"),
        (b"\x80\x02NN.", "left over"),
        (b"\x80\x02N.N", "left over"),
        (b"\x80\x02N(.", "a value is missing"),
        (b"\x80\x02(N.", "left over"),
        (b"\x80\x02N0.", "a value is missing"),
        (b"\x80\x02t.", "a mark is missing"),
        (b"\x80\x02N\x85h\x05.", "refers to value 5"),
        (b"\x80\x02\x96" + b"\0" * 5 + b"\x01\0\0.", "bytes early"),
        (b"\x80\x02\x8e" + b"\0" * 5 + b"\x01\0\0.", "bytes early"),
        (b"\x80\x02\x8d" + b"\0" * 5 + b"\x01\0\0.", "bytes early"),
        (b"\x80\x04\x95" + b"\0" * 5 + b"\x01\0\0N.", "before its frame"),
        (b"\x80\x02\x8b\xff\xff\xff\x7f.", "integer of 2147483647 bytes"),
        (b"\x80\x02\x8b\xff\xff\xff\xff.", "integer of 4294967295 bytes"),
        (b"\x80\x02X\x01\0\0\0\xff.", "not utf-8"),
        (b"\x80\x02c" + b"a" * 5000 + b"\n", "name without end"),
        (b"\x80\x02cos\nsys tem\n.", "which no class is called"),
        (b"\x80\x02cos\n\x1b[2J\n.", "which no class is called"),
        (b"\x80\x04\x8c\x04os\nx\x8c\x01s\x93.", "which no class is called"),
        (b"\x80\x04N\x8c\x01s\x93.", "a name of NoneType"),
        (b"\x80\x02NNR.", "calls NoneType"),
        (b"\x80\x02cos\nsystem\nNR.", "calls os.system with NoneType"),
        (b"\x80\x02NNb.", "sets the state of NoneType"),
        (b"\x80\x02cos\nsystem\n)RK\x01bK\x01b.", "sets the state of Opaque"),
        (b"\x80\x02NNa.", "appends to NoneType"),
        (b"\x80\x02NNNs.", "sets items of NoneType"),
        (b"\x80\x02}(Nu.", "a key without value"),
        (b"\x80\x02}]Ns.", "list as key"),
        (b"\x80\x02}}Ns.", "dict as key"),
        (b"\x80\x02}(X\x01\0\0\0wNX\x01\0\0\0wNu.", "key 'w' appears twice"),
        (b"\x80\x02}(K\x01N\x88Nu.", "key True appears twice"),
        (b"\x80\x04\x8f(]\x90.", "list as key of a dict or member of a set"),
        (b"\x80\x02NQ.", "no storage"),
        (b"\x80\x02Pabc\n.", "not one torch writes"),
        (b"\x80\x02N2.", "not one torch writes"),
        (b"\x80\x02\x82\x01.", "not one torch writes"),
        (b"\x80\x02\x83\x01\0.", "not one torch writes"),
        (b"\x80\x02\x84\x01\0\0\0.", "not one torch writes"),
        (b"\x80\x02(ios\nsystem\n.", "not one torch writes"),
        (b"\x80\x02(cos\nsystem\no.", "not one torch writes"),
        (b"\x80\x04cos\nsystem\n)}\x92.", "not one torch writes"),
        (b"\x80\x05\x97.", "not one torch writes"),
        (b"\x80\x05]\x98.", "not one torch writes"),
        (b"\x80\x02I1\n.", "not one torch writes"),
        (b"\x80\x02S'a'\n.", "not one torch writes"),
        (b"\x80\x02\x80\x02N.", "not one torch writes"),
        (
            b"\x80\x02c_codecs\nencode\nX\x02\0\0\0\xc4\x80X\x06\0\0\0latin1\x86R.",
            "more than bytes",
        ),
    ],
)
def test_refuses_broken_pickles(data: bytes, found: str) -> None:
    with pytest.raises(BadCheckpointError) as refusal:
        read(data)
    assert refusal.value.message.startswith("some.pt: data.pkl: ")
    assert found in refusal.value.message
    assert refusal.value.message.isprintable()


def test_too_many_instructions(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("flmgrow.formats.torch_file.unpickler.MAX_INSTRUCTIONS", 1000)
    with pytest.raises(BadCheckpointError, match="more than 1000 instructions"):
        read(b"\x80\x02(" + b"N" * 2000 + b"t.")


def test_names_cannot_smuggle_instructions() -> None:
    with pytest.raises(BadCheckpointError, match="which no class is called"):
        Global("os", "x\ncos\nsystem")


RICH = pickle.dumps(
    [
        {"model": collections.OrderedDict(a=[1, 2.5, "x"], b=(None, True, b"bytes"))},
        argparse.Namespace(hidden_size=64, signal=signal.Signals.SIGTERM),
        np.arange(3),
        {1, 2},
        2**70,
    ],
    2,
)


@settings(max_examples=400)
@given(st.data())
def test_damaged_pickles_are_refused_or_read_as_data(data: st.DataObject) -> None:
    damaged = bytearray(RICH)
    for _ in range(data.draw(st.integers(1, 4))):
        position = data.draw(st.integers(0, len(damaged) - 1))
        match data.draw(st.sampled_from(["set", "cut", "insert"])):
            case "set":
                damaged[position] = data.draw(st.integers(0, 255))
            case "cut":
                del damaged[position : position + data.draw(st.integers(1, 9))]
            case "insert":
                damaged[position:position] = data.draw(st.binary(min_size=1, max_size=9))
        if not damaged:
            return
    message = "."
    try:
        inert = read(bytes(damaged))
    except BadCheckpointError as refusal:
        message = refusal.message
    else:
        list(walk_tensors(inert))
        read(to_pickle(inert)[0])
    assert message.isprintable()
    assert len(message) < 1000


@settings(max_examples=200)
@given(st.binary(max_size=200))
def test_random_programs_are_refused_or_read_as_data(body: bytes) -> None:
    try:
        inert = read(b"\x80\x04" + body + b".")
    except BadCheckpointError:
        return
    read(to_pickle(inert)[0])


def test_a_size_is_a_size() -> None:
    size = read(program(Opaque("reduce", Global("torch", "Size"), ((2, 3),))))
    assert type(size) is SizeTuple
    assert size == (2, 3)
    assert type(read(to_pickle(size)[0])) is SizeTuple
