import argparse
import collections
import enum
import io
import random
import signal
import sys
import types
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch_files import DTYPES, copied, loaded, raw, records_of, same, saved, values_of, written

from flmgrow.formats.torch_file import file_writer
from flmgrow.formats.torch_file.file import TorchFile, source_chunks
from flmgrow.formats.torch_file.file_writer import TorchFileWriter, new_tensor
from flmgrow.formats.torch_file.objects import enum_value, namespace, walk_tensors
from flmgrow.formats.torch_file.values import Opaque, TensorRecord
from flmgrow.storage import crc


def tensors() -> dict[str, torch.Tensor]:
    base = torch.arange(60, dtype=torch.float32)
    marked = torch.ones(4)
    marked.tensor_model_parallel = True  # type: ignore[attr-defined]
    marked_parameter = torch.nn.Parameter(torch.ones(4))
    marked_parameter.partition_dim = 0  # type: ignore[attr-defined]
    return {
        "plain": torch.randn(3, 5),
        "view": base[7:19],
        "matrix": base.view(6, 10),
        "transposed": base.view(6, 10).t(),
        "strided": base[3::4],
        "permuted": torch.arange(24).view(2, 3, 4).permute(2, 0, 1),
        "expanded": torch.ones(1, 3).expand(4, 3),
        "empty": torch.zeros(0),
        "empty matrix": torch.zeros(3, 0, 2),
        "scalar": torch.tensor(3.5),
        "parameter": torch.nn.Parameter(torch.randn(2, 2)),
        "frozen parameter": torch.nn.Parameter(torch.randn(2), requires_grad=False),
        "leaf": torch.randn(2, requires_grad=True),
        "marked": marked,
        "marked parameter": marked_parameter,
    }


@pytest.mark.parametrize("name", tensors())
def test_tensors_round_trip(name: str, tmp_path: Path) -> None:
    tensor = tensors()[name]
    path = saved({"x": tensor}, tmp_path / "some.pt")
    with TorchFile(path) as file:
        record = dict(walk_tensors(file.root))[("x",)]
        assert record.shape == tuple(tensor.shape)
        assert record.stride == tensor.stride()
        assert record.is_contiguous == tensor.is_contiguous()
        assert record.requires_grad == tensor.requires_grad
        assert record.is_parameter == isinstance(tensor, torch.nn.Parameter)
        assert record.count == tensor.numel()
        if tensor.numel():
            assert b"".join(values_of(file, record)) == raw(tensor)
    assert same(loaded(copied(path)), {"x": tensor})


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_every_dtype(dtype: torch.dtype, tmp_path: Path) -> None:
    data = torch.randint(0, 2, (3, 7 * dtype.itemsize), dtype=torch.uint8)
    tensor = data.view(dtype)[1:]
    path = saved(tensor, tmp_path / "some.pt")
    with TorchFile(path) as file:
        assert isinstance(file.root, TensorRecord)
        assert f"torch.{file.root.dtype}" == str(dtype)
        assert file.root.itemsize == dtype.itemsize
        assert file.read(file.root.storage, file.root.offset, file.root.nbytes) == raw(tensor)
    assert same(loaded(copied(path), weights_only=True), tensor)

    fresh = new_tensor(str(dtype).removeprefix("torch."), (2, 7))
    assert (fresh.stride, fresh.nbytes, fresh.storage.nbytes) == (
        (7, 1),
        raw_size(tensor),
        raw_size(tensor),
    )
    output = bytearray()
    writer = TorchFileWriter(fresh, output.extend)
    writer.write_storage(fresh.storage, [raw(tensor)])
    writer.finish()
    assert same(loaded(bytes(output), weights_only=True), tensor)


def raw_size(tensor: torch.Tensor) -> int:
    return tensor.numel() * tensor.itemsize


@pytest.mark.parametrize("shape", [(), (0,), (3,), (2, 0, 3), (2, 3, 4)])
def test_new_tensors_are_laid_out_as_torch_does(shape: tuple[int, ...]) -> None:
    record = new_tensor("bfloat16", shape)
    tensor = torch.zeros(shape, dtype=torch.bfloat16)
    assert record.stride == tensor.stride()
    assert record.nbytes == raw_size(tensor)
    assert record.is_contiguous


def test_new_tensor_refuses_unknown_dtypes() -> None:
    with pytest.raises(ValueError, match="'int7' is not a dtype"):
        new_tensor("int7", (1,))


def test_tensors_that_share_still_share(tmp_path: Path) -> None:
    base = torch.arange(12.0)
    path = saved([base, base.view(3, 4), base], tmp_path / "some.pt")
    one, two, three = loaded(copied(path))
    one[5] = 77
    assert two[1, 1] == 77
    assert three is one


def test_special_tensors_go_back_unchanged(tmp_path: Path) -> None:
    indices, values = torch.tensor([[0, 1], [1, 0]]), torch.tensor([3.0, 4.0])
    sparse = torch.sparse_coo_tensor(indices, values, (2, 2), check_invariants=True).coalesce()
    path = saved(
        {"sparse": sparse, "conjugated": torch.randn(3, dtype=torch.complex64).conj()},
        tmp_path / "some.pt",
    )
    with TorchFile(path) as file:
        assert isinstance(file.root, dict)
        assert {type(value) for value in file.root.values()} == {Opaque}
        assert len(list(walk_tensors(file.root))) == 2  # indices and values
    copy, original = loaded(copied(path)), loaded(path.read_bytes())
    assert torch.equal(copy["sparse"].to_dense(), sparse.to_dense())
    assert torch.equal(copy["conjugated"], original["conjugated"])


# --- as Megatron saves


class ModelType(enum.Enum):
    encoder_or_decoder = 1


@pytest.fixture(autouse=True)
def fake_megatron(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("megatron", "megatron.core", "megatron.core.enums"):
        monkeypatch.setitem(sys.modules, name, types.ModuleType(name))
    monkeypatch.setattr(ModelType, "__module__", "megatron.core.enums")
    sys.modules["megatron.core.enums"].ModelType = ModelType  # type: ignore[attr-defined]


def megatron_state(seed: int = 0) -> dict[str, object]:
    torch.manual_seed(seed)
    layers = {
        f"decoder.layers.{number}.mlp.linear_fc1.weight": torch.randn(16, 8).bfloat16()
        for number in range(3)
    }
    model: collections.OrderedDict[str, object] = collections.OrderedDict(layers)
    model["decoder.layers.0.mlp.linear_fc1._extra_state"] = io.BytesIO(b"scales")
    model["output_layer._extra_state"] = None
    master = torch.randn(16, 8)
    master.tensor_model_parallel = True  # type: ignore[attr-defined]
    moments = {"step": 7, "exp_avg": torch.randn(16, 8), "exp_avg_sq": torch.rand(16, 8)}
    arguments = argparse.Namespace(
        hidden_size=8,
        params_dtype=torch.bfloat16,
        model_type=ModelType.encoder_or_decoder,
        exit_signal=signal.Signals.SIGTERM,
        data_path=[Path("/data/tokens")],
        lr=1e-4,
    )
    random_states = {
        "random_rng_state": random.Random(1).getstate(),
        "np_rng_state": np.random.RandomState(1).get_state(),
        "torch_rng_state": torch.get_rng_state(),
        "rng_tracker_states": {"model-parallel-rng": torch.get_rng_state()},
    }
    return {
        "args": arguments,
        "checkpoint_version": 3.0,
        "iteration": 7,
        "model": model,
        "optimizer": {
            "optimizer": {"state": {0: moments}, "param_groups": [{"lr": 0.1, "params": [0]}]},
            "fp32_from_fp16_params": [[master]],
        },
        "rng_state": [random_states],
        "num_floating_point_operations_so_far": np.float64(1.5e20),
    }


def without_streams(state: dict[str, Any]) -> dict[str, Any]:
    """A BytesIO is equal only to itself: its content is what must be equal."""
    model = dict(state["model"])
    stream = model.pop("decoder.layers.0.mlp.linear_fc1._extra_state")
    return {**state, "model": model, "stream": stream.getvalue()}


def test_a_megatron_checkpoint_goes_through_unchanged(tmp_path: Path) -> None:
    state = megatron_state()
    path = saved(state, tmp_path / "model_optim_rng.pt")
    with TorchFile(path) as file:
        assert isinstance(file.root, dict)
        arguments = namespace(file.root["args"])
        assert arguments["hidden_size"] == 8
        assert enum_value(arguments["model_type"]) == 1
        assert file.root["iteration"] == 7
        names = [keys for keys, _ in walk_tensors(file.root)]
        assert ("model", "decoder.layers.2.mlp.linear_fc1.weight") in names
        assert ("optimizer", "optimizer", "state", 0, "exp_avg") in names
        assert ("optimizer", "fp32_from_fp16_params", 0, 0) in names
    copy = loaded(copied(path), weights_only=False)
    assert same(without_streams(copy), without_streams(state))
    master = copy["optimizer"]["fp32_from_fp16_params"][0][0]
    assert master.tensor_model_parallel is True


def test_no_module_is_imported_to_read_a_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = saved(megatron_state(), tmp_path / "model_optim_rng.pt")
    for name in ("megatron", "megatron.core", "megatron.core.enums"):
        monkeypatch.delitem(sys.modules, name)
    known = set(sys.modules)
    copied(path)
    assert set(sys.modules) == known


# --- the writer


@pytest.mark.parametrize("value", [tensors(), {}, {"w": torch.zeros(0)}, megatron_state()])
@pytest.mark.parametrize("prefix", ["archive", "model_optim_rng"])
def test_byte_for_byte_what_torch_writes(
    value: object, prefix: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Given the same data.pkl: all but torch's id of the file, which is a hash of its own."""
    path = saved(value, tmp_path / f"{prefix}.pt")
    theirs = path.read_bytes()
    content = records_of(theirs)
    with TorchFile(path) as file:
        by_name = {record.storage.name: record.storage for _, record in walk_tensors(file.root)}
        count = sum("/data/" in name for name in content)
        storages = [by_name[f"{prefix}/data/{number}"] for number in range(count)]
        pickled = content[f"{prefix}/data.pkl"]
        monkeypatch.setattr(file_writer, "to_pickle", lambda _: (pickled, storages))
        identity = content[f"{prefix}/.data/serialization_id"]
        monkeypatch.setattr(file_writer, "_serialization_id", lambda *_: identity)
        ours = written(file.root, prefix)
    assert ours == theirs


def test_the_files_id_tells_contents_apart(tmp_path: Path) -> None:
    ids = []
    for seed in (1, 1, 2):
        path = saved(megatron_state(seed), tmp_path / "some.pt")
        ids.append(records_of(copied(path))["archive/.data/serialization_id"])
    assert ids[0] == ids[1] != ids[2]
    assert all(len(one) == 40 and one.isdigit() for one in ids)


@pytest.mark.parametrize(
    "options", [{}, {"mmap": True}, {"map_location": "meta"}, {"weights_only": False}]
)
def test_torch_loads_it_in_every_way(options: dict[str, Any], tmp_path: Path) -> None:
    state = {"w": torch.randn(100), "v": torch.arange(5), "n": 3, "s": "text"}
    path = tmp_path / "copy.pt"
    path.write_bytes(copied(saved(state, tmp_path / "some.pt")))
    copy = torch.load(path, **options)
    assert list(copy) == list(state)
    if options.get("map_location") != "meta":
        assert same(copy, state)


def test_the_size_is_known_before_any_byte() -> None:
    record = new_tensor("float32", (1 << 40,))
    sizes = []
    writer = TorchFileWriter({"w": record}, lambda data: sizes.append(len(data)))
    assert writer.total_size > 4 << 40
    assert sum(sizes) < 2000
    assert writer.storages == [record.storage]


def test_chunks_of_any_kind() -> None:
    record = new_tensor("float32", (6,))
    values = np.arange(6, dtype=np.float32)
    output = bytearray()
    writer = TorchFileWriter([record], output.extend)
    chunks: list[crc.Bytes] = [
        values[:2].tobytes(),
        bytearray(values[2:3].tobytes()),
        values[3:].data,
        b"",
    ]
    writer.write_storage(record.storage, chunks)
    writer.finish()
    assert loaded(bytes(output))[0].tolist() == values.tolist()


def test_the_writer_refuses_what_would_not_be_the_file() -> None:
    one, two = new_tensor("float32", (2,)), new_tensor("float32", (2,))
    writer = TorchFileWriter([one, two], lambda _: None)
    with pytest.raises(ValueError, match="storage 0 of 2 comes next"):
        writer.write_storage(two.storage, [bytes(8)])
    with pytest.raises(ValueError, match="storage 0 of 2 is not written"):
        writer.finish()
    with pytest.raises(ValueError, match=r"archive/data/0: got 7 bytes, wanted 8"):
        writer.write_storage(one.storage, [bytes(7)])
    writer = TorchFileWriter([one], lambda _: None)
    with pytest.raises(ValueError, match=r"archive/data/0: got more bytes, wanted 8"):
        writer.write_storage(one.storage, [bytes(8), bytes(1)])
    with pytest.raises(ValueError, match="the storage is new"):
        source_chunks(one.storage)


# --- any data, any damage

numbers = st.integers(-(2**70), 2**70) | st.floats(allow_nan=False) | st.booleans()


@st.composite
def random_tensors(draw: st.DrawFn) -> torch.Tensor:
    dtype = draw(st.sampled_from(DTYPES))
    shape = draw(st.lists(st.integers(0, 4), max_size=3))
    count = int(np.prod(shape, dtype=np.int64))
    start = draw(st.integers(0, 3))
    nbytes = (start + count) * dtype.itemsize
    bits = np.random.default_rng(draw(st.integers(0, 99))).integers(0, 2, nbytes)
    data = torch.zeros(nbytes, dtype=torch.uint8)
    data[:] = torch.from_numpy(bits)
    tensor = data.view(dtype)[start:].view(shape)
    if tensor.dim() > 1 and draw(st.booleans()):
        tensor = tensor.transpose(0, 1)
    return tensor


states = st.recursive(
    random_tensors() | st.none() | numbers | st.text(max_size=9) | st.binary(max_size=9),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.lists(inner, max_size=3).map(tuple)
        | st.dictionaries(st.text(max_size=9) | st.integers(), inner, max_size=4)
    ),
    max_leaves=12,
)


@settings(max_examples=150, deadline=None)
@given(states)
def test_any_state_dict_round_trips(
    tmp_path_factory: pytest.TempPathFactory, state: object
) -> None:
    path = saved(state, tmp_path_factory.getbasetemp() / "any.pt")
    data = copied(path)
    assert same(loaded(data, weights_only=False), loaded(path.read_bytes(), weights_only=False))
    assert all(record is not None for record in records_of(data).values())
