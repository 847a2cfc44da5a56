"""A tensor in a pickle is a record of where its bytes are, if it fits the storage."""

import pathlib
from collections.abc import Iterator

import pytest
from inert_pickles import RawStorage, program, read, storage_id

from flmgrow.errors import BadCheckpointError
from flmgrow.formats.torch_file.objects import MAX_DEPTH, walk_tensors
from flmgrow.formats.torch_file.pickler import to_pickle
from flmgrow.formats.torch_file.unpickler import unpickle
from flmgrow.formats.torch_file.values import (
    Global,
    Opaque,
    SizeTuple,
    Storage,
    StoredBytes,
    TensorRecord,
)
from flmgrow.storage.files import ReadOnlyFile


@pytest.fixture
def place(tmp_path: pathlib.Path) -> Iterator[StoredBytes]:
    """The bytes of a storage of ten float32."""
    path = tmp_path / "some.pt"
    path.write_bytes(bytes(40))
    file = ReadOnlyFile(path)
    yield StoredBytes(file, "archive/data/0", 0, 40, 0)
    file.close()


HOOKS = Opaque("reduce", Global("collections", "OrderedDict"), ())


def tensor_call(
    storage: object = None,
    start: object = 0,
    shape: object = (2, 5),
    stride: object = (5, 1),
    *more: object,
) -> Opaque:
    storage = RawStorage(storage_id()) if storage is None else storage
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
        (tensor_call(RawStorage(storage_id(count=20))), "record has 40 bytes, 20 x FloatStorage"),
        (tensor_call(RawStorage(storage_id(count=-1))), "record has 40 bytes"),
        (tensor_call(RawStorage(storage_id(count=1 << 62))), "record has 40 bytes"),
        (tensor_call(RawStorage(storage_id(count=True))), "no storage"),
        (tensor_call(RawStorage(storage_id(key="7"))), "storage '7' has no record"),
        (tensor_call(RawStorage(storage_id(key=0))), "no storage"),
        (tensor_call(RawStorage(storage_id(word="module"))), "no storage"),
        (
            tensor_call(RawStorage(storage_id(kind=Global("os", "system")))),
            "storage '0' is of the unknown kind os.system",
        ),
        (
            (
                tensor_call(),
                tensor_call(RawStorage(storage_id(kind=Global("torch", "IntStorage")))),
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


def test_tensors_have_no_tuples_in_common() -> None:
    """As torch writes them: a plan may make many tensors of one shape, and the bytes must not show
    it.
    """
    shape, stride = (2, 300), (300, 1)
    storages = [Storage("FloatStorage", 600) for _ in range(2)]
    alike = [TensorRecord(storage, "float32", shape, stride) for storage in storages]
    apart = [TensorRecord(s, "float32", (*shape,), (*stride,)) for s in storages]
    assert alike[0].shape is alike[1].shape
    assert apart[0].shape is not apart[1].shape
    assert to_pickle(alike)[0] == to_pickle(apart)[0]
    assert to_pickle([shape, shape])[0] != to_pickle([shape, (*shape,)])[0]


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


def test_a_size_is_a_size() -> None:
    size = read(program(Opaque("reduce", Global("torch", "Size"), ((2, 3),))))
    assert type(size) is SizeTuple
    assert size == (2, 3)
    assert type(read(to_pickle(size)[0])) is SizeTuple
