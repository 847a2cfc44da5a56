import pickle
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from dcp_folders import DTYPES, Box, bits, cut, grid, load, random_tensor, save
from torch.distributed.checkpoint.filesystem import FileSystemReader

from flmgrow.formats.dcp import items as dcp_items
from flmgrow.formats.dcp.items import DcpItems
from flmgrow.formats.dcp.metadata import DcpChunk, DcpObject, DcpTensor, read_metadata
from flmgrow.formats.dcp.writer import DcpFilePlan, NewChunk, NewObject, metadata_bytes
from flmgrow.formats.torch_file.file_writer import new_tensor
from flmgrow.storage.files import ReadOnlyFile

# Name, shape, parts per dimension.
SHAPES = [
    ("one", (7,), (1,)),
    ("line", (64,), (9,)),
    ("rows", (12, 5), (4, 1)),
    ("columns", (6, 16), (1, 8)),
    ("layers", (4, 6, 8), (4, 2, 2)),
    ("scalar", (), ()),
]


def dtype_name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def state_of(dtype: torch.dtype) -> tuple[dict[str, torch.Tensor], dict[str, list[Box]]]:
    state = {name: random_tensor(shape, dtype) for name, shape, _ in SHAPES}
    return state, {name: grid(shape, parts) for name, shape, parts in SHAPES}


def read_tensor(items: DcpItems, tensor: DcpTensor) -> torch.Tensor:
    """Put a tensor together from its chunks."""
    whole = torch.zeros(tensor.shape, dtype=getattr(torch, tensor.dtype))
    for chunk in tensor.chunks:
        file, record = items.open_item(tensor.name, tensor.dtype, chunk)
        assert record.is_contiguous
        data = file.read(record.storage, record.offset, record.nbytes)
        piece = torch.frombuffer(bytearray(data), dtype=whole.dtype).reshape(chunk.sizes)
        cut(whole, (chunk.offsets, chunk.sizes)).copy_(piece)
    return whole


def write(
    folder: Path,
    state: dict[str, torch.Tensor],
    boxes: dict[str, list[Box]],
    objects: dict[str, Any] | None = None,
    files: int = 1,
) -> Path:
    """Write a folder, the chunks dealt out to the files in turn."""
    folder.mkdir(exist_ok=True)
    items: list[NewChunk | NewObject] = [
        NewChunk(name, dtype_name(tensor.dtype), *box)
        for name, tensor in state.items()
        for box in boxes[name]
    ]
    items += [NewObject(name, root) for name, root in (objects or {}).items()]
    chunks: dict[str, list[DcpChunk]] = {name: [] for name in state}
    placed_objects: list[DcpObject] = []
    for number in range(files):
        plan = DcpFilePlan(f"__{number}_0.distcp", items[number::files])
        output = bytearray()
        writer = plan.writer(output.extend)
        for item, place in zip(plan.items, plan.placed, strict=True):
            assert len(output) == place.offset
            if isinstance(item, NewChunk):
                data = bits(cut(state[item.name], (item.offsets, item.sizes)))
                writer.write_chunk(item, [data[:5], data[5:]])
                assert isinstance(place, DcpChunk)
                chunks[item.name].append(place)
            else:
                writer.write_object(item, lambda storage: [bytes(range(storage.nbytes))])
                assert isinstance(place, DcpObject)
                placed_objects.append(place)
            assert len(output) == place.offset + place.length
        writer.finish()
        assert len(output) == plan.total_size
        (folder / plan.file).write_bytes(output)
    tensors = [
        DcpTensor(name, dtype_name(tensor.dtype), tuple(tensor.shape), tuple(chunks[name]))
        for name, tensor in state.items()
    ]
    (folder / ".metadata").write_bytes(metadata_bytes(tensors, placed_objects))
    return folder


@pytest.mark.parametrize("dtype", DTYPES, ids=dtype_name)
def test_reads_what_torch_saves(dtype: torch.dtype, tmp_path: Path) -> None:
    state, boxes = state_of(dtype)
    save(tmp_path, state, boxes, files=3)
    found = read_metadata(tmp_path)
    assert not found.objects
    assert sorted(found.tensors) == sorted(state)
    assert len(list(tmp_path.glob("*.distcp"))) == 3
    items = DcpItems(tmp_path)
    for name, tensor in found.tensors.items():
        assert (tensor.name, tensor.dtype) == (name, dtype_name(dtype))
        assert sorted((chunk.offsets, chunk.sizes) for chunk in tensor.chunks) == boxes[name]
        assert bits(read_tensor(items, tensor)) == bits(state[name])


@pytest.mark.parametrize("dtype", DTYPES, ids=dtype_name)
def test_torch_loads_what_is_written(dtype: torch.dtype, tmp_path: Path) -> None:
    state, boxes = state_of(dtype)
    write(tmp_path, state, boxes, files=2)
    loaded = {name: torch.zeros_like(tensor) for name, tensor in state.items()}
    load(tmp_path, loaded)
    assert all(bits(loaded[name]) == bits(state[name]) for name in state)


def test_torch_loads_it_in_another_sharding(tmp_path: Path) -> None:
    state, boxes = state_of(torch.bfloat16)
    write(tmp_path, state, boxes, files=3)
    wanted: dict[str, Box] = {
        "line": ((5,), (50,)),
        "rows": ((2, 1), (7, 3)),
        "columns": ((1, 3), (4, 9)),
        "layers": ((1, 2, 3), (3, 3, 2)),
    }
    slices = {name: torch.zeros(sizes, dtype=torch.bfloat16) for name, (_, sizes) in wanted.items()}
    load(tmp_path, slices, wanted)
    for name, box in wanted.items():
        assert bits(slices[name]) == bits(cut(state[name], box))


def test_reads_what_it_writes(tmp_path: Path) -> None:
    state, boxes = state_of(torch.float16)
    root = {"note": "text", "t": new_tensor("uint8", (4,))}
    found = read_metadata(write(tmp_path, state, boxes, {"extra": [root], "rng": None}, files=4))
    items = DcpItems(tmp_path)
    for name, tensor in found.tensors.items():
        assert bits(read_tensor(items, tensor)) == bits(state[name])
    assert set(found.objects) == {"extra", "rng"}
    assert items.open_object(found.objects["rng"]).root is None
    reader = FileSystemReader(tmp_path)
    metadata = reader.read_metadata()
    assert metadata.storage_meta is not None
    assert metadata.planner_data is None


def test_the_same_arguments_give_the_same_bytes(tmp_path: Path) -> None:
    state, boxes = state_of(torch.int32)
    first = write(tmp_path / "a", state, boxes, {"x": 1}, files=2)
    second = write(tmp_path / "b", state, boxes, {"x": 1}, files=2)
    for path in first.iterdir():
        assert path.read_bytes() == (second / path.name).read_bytes()


def test_written_items_and_metadata_are_like_those_of_torch(tmp_path: Path) -> None:
    state, boxes = state_of(torch.float32)
    state.pop("scalar")
    theirs = save(tmp_path / "a", state, boxes)
    ours = write(tmp_path / "b", state, boxes)
    wanted = FileSystemReader(theirs).read_metadata()
    found = FileSystemReader(ours).read_metadata()
    assert found.state_dict_metadata == wanted.state_dict_metadata
    assert found.version == wanted.version
    assert found.storage_data.keys() == wanted.storage_data.keys()
    lengths = {index: info.length for index, info in found.storage_data.items()}
    assert lengths == {index: info.length for index, info in wanted.storage_data.items()}


def test_objects_stay_inert(tmp_path: Path) -> None:
    state = {"w": torch.ones(2), "extra": {"step": 3, "t": torch.arange(3)}, "rng": [1, "a", None]}
    found = read_metadata(save(tmp_path, state))
    items = DcpItems(tmp_path)
    roots = {name: items.open_object(item).root for name, item in found.objects.items()}
    assert roots == {"extra.step": 3, "rng": [1, "a", None]}
    assert set(found.tensors) == {"w", "extra.t"}


def test_objects_with_tensors_are_copied(tmp_path: Path) -> None:
    buffer = tmp_path / "source.pt"
    torch.save([{"a": 1, "t": torch.arange(5)}], buffer)
    place = DcpObject("o/shard_0_1", buffer.name, 0, buffer.stat().st_size)
    root = DcpItems(tmp_path).open_object(place).root
    plan = DcpFilePlan("__0_0.distcp", [NewObject(place.name, root)])
    output = bytearray()
    writer = plan.writer(output.extend)
    item = plan.items[0]
    assert isinstance(item, NewObject)
    writer.write_object(item)
    writer.finish()
    (tmp_path / "copy.pt").write_bytes(output)
    (copied,) = torch.load(tmp_path / "copy.pt", weights_only=True)
    assert copied["a"] == 1
    assert torch.equal(copied["t"], torch.arange(5))


def test_chunks_without_elements_are_left_out(tmp_path: Path) -> None:
    state = {"w": torch.arange(6.0), "none": torch.empty(0, 4)}
    boxes: dict[str, list[Box]] = {"w": [((0,), (4,)), ((4,), (2,)), ((6,), (0,))]}
    found = read_metadata(save(tmp_path, state, boxes)).tensors
    assert [chunk.sizes for chunk in found["w"].chunks] == [(4,), (2,)]
    assert found["none"].shape == (0, 4)
    assert not found["none"].chunks


def test_a_dict_of_one_entry_and_any_protocol(tmp_path: Path) -> None:
    save(tmp_path, {"only": torch.ones(3)})
    metadata = FileSystemReader(tmp_path).read_metadata()
    wanted = read_metadata(tmp_path)
    for protocol in range(2, 6):
        (tmp_path / ".metadata").write_bytes(pickle.dumps(metadata, protocol))
        assert read_metadata(tmp_path) == wanted


def test_items_share_descriptors_and_are_opened_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened: list[Path] = []
    original = ReadOnlyFile.open_descriptor

    def count(self: ReadOnlyFile) -> int:
        opened.append(self.path)
        return original(self)

    state = {"w": random_tensor((64, 4), torch.bfloat16)}
    found = read_metadata(save(tmp_path, state, {"w": grid((64, 4), (64, 1))}, files=2)).tensors
    monkeypatch.setattr(ReadOnlyFile, "open_descriptor", count)
    items = DcpItems(tmp_path)
    assert not opened
    first = items.open_item("w", "bfloat16", found["w"].chunks[0])
    with ThreadPoolExecutor(8) as pool:
        wholes = list(pool.map(lambda _: bits(read_tensor(items, found["w"])), range(8)))
    assert set(wholes) == {bits(state["w"])}
    assert len(opened) == 2
    assert items.open_item("w", "bfloat16", found["w"].chunks[0])[0] is first[0]
    items.close()
    assert bits(read_tensor(items, found["w"])) == bits(state["w"])


def test_only_so_many_headers_are_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dcp_items, "KEPT_ITEMS", 3)
    state = {"w": random_tensor((16,), torch.float32)}
    found = read_metadata(save(tmp_path, state, {"w": grid((16,), (16,))})).tensors
    items = DcpItems(tmp_path)
    assert bits(read_tensor(items, found["w"])) == bits(state["w"])
    assert len(items._opened) == 3


def test_the_writer_wants_its_items_in_order() -> None:
    items = [NewChunk("w", "float32", (at,), (2,)) for at in (0, 2)]
    output = bytearray()
    writer = DcpFilePlan("__0_0.distcp", items).writer(output.extend)
    with pytest.raises(ValueError, match="item 0 of 2 comes next"):
        writer.write_chunk(items[1], [bytes(8)])
    writer.write_chunk(items[0], [bytes(8)])
    with pytest.raises(ValueError, match="item 1 of 2 is not written"):
        writer.finish()
    with pytest.raises(ValueError, match="got more bytes, wanted 8"):
        writer.write_chunk(items[1], [bytes(9)])
    with pytest.raises(ValueError, match="not a dtype of torch"):
        DcpFilePlan("a", [NewChunk("w", "float31", (0,), (2,))])


def test_metadata_with_a_hole_is_not_written() -> None:
    chunk = DcpChunk((0,), (2,), "__0_0.distcp", 0, 1000)
    with pytest.raises(ValueError, match="w: found chunks of 2 elements together, wanted 4"):
        metadata_bytes([DcpTensor("w", "float32", (4,), (chunk,))], [])


# --- megatron-core

MEGATRON = """
import sys
import warnings
warnings.simplefilter("ignore")
import torch
from flmgrow.trainer.megatron import cpu
cpu.install()
from megatron.core import dist_checkpointing
from megatron.core.dist_checkpointing import ShardedTensor
from megatron.core.dist_checkpointing.mapping import ShardedObject
cpu.patch_megatron()

def state(fill):
    layers = {f"layer{i}": ShardedTensor.from_rank_offsets(
        "layers.w", fill(4, 6) + i, (0, i, 3), prepend_axis_num=1) for i in range(3)}
    whole = ShardedTensor.from_rank_offsets("w", fill(2, 12).bfloat16())
    return {"w": whole, **layers, "o": ShardedObject("o", {"a": 1}, (1,), (0,))}

def arange(*shape):
    return torch.arange(shape[0] * shape[1], dtype=torch.float32).reshape(shape)

if __name__ == "__main__":
    action, folder = sys.argv[1:]
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{folder}.init-{action}", rank=0, world_size=1)
    if action == "save":
        dist_checkpointing.save(state(arange), folder)
    else:
        loaded = dist_checkpointing.load(state(torch.zeros), folder)
        assert torch.equal(loaded["w"], arange(2, 12).bfloat16())
        assert all(torch.equal(loaded[f"layer{i}"], arange(4, 6) + i) for i in range(3))
        assert loaded["o"] == {"a": 1}, loaded["o"]
    torch.distributed.destroy_process_group()
"""


def run_megatron(action: str, folder: Path) -> None:
    script = folder.parent / "megatron_state.py"
    script.write_text(MEGATRON)
    done = subprocess.run(
        [sys.executable, str(script), action, str(folder)],
        capture_output=True,
        text=True,
        timeout=900,
        check=False,
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
def test_megatron_core_in_both_directions(tmp_path: Path) -> None:
    pytest.importorskip("megatron.core")
    folder = tmp_path / "saved"
    folder.mkdir()
    run_megatron("save", folder)
    found = read_metadata(folder)
    items = DcpItems(folder)
    state = {name: read_tensor(items, tensor) for name, tensor in found.tensors.items()}
    assert {name: tuple(tensor.shape) for name, tensor in state.items()} == {
        "layers.w": (3, 4, 6),
        "w": (2, 12),
    }
    assert torch.equal(state["w"], torch.arange(24).reshape(2, 12).bfloat16())
    wanted = torch.arange(24.0).reshape(1, 4, 6) + torch.arange(3).reshape(3, 1, 1)
    assert torch.equal(state["layers.w"], wanted)
    roots = {name: items.open_object(item).root for name, item in found.objects.items()}
    assert roots == {"o/shard_0_1": [{"a": 1}]}

    for path in [*folder.glob("*.distcp"), folder / ".metadata"]:
        path.unlink()
    boxes = {"w": grid((2, 12), (1, 3)), "layers.w": grid((3, 4, 6), (1, 2, 2))}
    write(folder, state, boxes, roots, files=2)
    run_megatron("load", folder)
