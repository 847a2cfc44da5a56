"""Every kind of broken or hostile folder ends in one clear refusal, and runs nothing."""

import os
import pickle
import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from dcp_folders import Run, grid, random_tensor, refused, save
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch.distributed.checkpoint import filesystem, metadata

from flmgrow.errors import BadCheckpointError, FlmgrowError
from flmgrow.formats.dcp.items import DcpItems
from flmgrow.formats.dcp.metadata import read_metadata

Edit = Callable[[metadata.Metadata], object]


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of two files: w in two chunks, b in one, and an object."""
    state = {"w": random_tensor((4, 6), torch.bfloat16), "b": torch.ones(3), "extra": [1, "a"]}
    return save(tmp_path_factory.mktemp("saved"), state, {"w": grid((4, 6), (2, 1))}, files=2)


@pytest.fixture
def folder(saved: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(saved, tmp_path / "folder"))


def edit(folder: Path, change: Edit) -> None:
    path = folder / ".metadata"
    facts = pickle.loads(path.read_bytes())
    change(facts)
    path.write_bytes(pickle.dumps(facts))


# --- the folder


def test_no_metadata(folder: Path) -> None:
    (folder / ".metadata").unlink()
    refused(folder, "does not exist, wanted a finished checkpoint")
    shutil.rmtree(folder)
    refused(folder, "does not exist, wanted a finished checkpoint")


@pytest.mark.parametrize("keep", [True, False])
def test_interrupted_save(folder: Path, keep: bool) -> None:
    shutil.copy(folder / ".metadata", folder / ".metadata.tmp")
    if not keep:
        (folder / ".metadata").unlink()
    refused(folder, "found .metadata.tmp beside it: saving was interrupted")


def test_empty_metadata(folder: Path) -> None:
    (folder / ".metadata").write_bytes(b"")
    refused(folder, "found 0 bytes, wanted 1 to")


def test_metadata_cut_anywhere(folder: Path) -> None:
    path = folder / ".metadata"
    data = path.read_bytes()
    for end in range(1, len(data)):
        path.write_bytes(data[:end])
        refused(folder, "")


def test_all_missing_files_are_listed_before_anything_else(folder: Path) -> None:
    for path in folder.glob("*.distcp"):
        path.unlink()
    edit(folder, lambda facts: w(facts).chunks.pop())
    refused(folder, "found 0 of 2 files, wanted also __0_0.distcp, __0_1.distcp")


def test_a_file_that_is_none(folder: Path) -> None:
    (folder / "__0_0.distcp").unlink()
    (folder / "__0_0.distcp").mkdir()
    refused(folder, "__0_0.distcp: is a folder, wanted a file")
    (folder / "__0_0.distcp").rmdir()
    os.mkfifo(folder / "__0_0.distcp")
    refused(folder, "__0_0.distcp: is not a regular file")


@pytest.mark.parametrize("name", [".metadata", "__0_1.distcp"])
def test_links_out_of_the_folder(folder: Path, name: str) -> None:
    outside = folder.parent / "outside"
    shutil.move(folder / name, outside)
    (folder / name).symlink_to(outside)
    assert read_metadata(folder)
    (folder / name).unlink()
    shutil.move(outside, folder / "elsewhere")
    (folder / name).symlink_to("elsewhere")
    assert read_metadata(folder)
    (folder.parent / "link").symlink_to(folder)
    assert read_metadata(folder.parent / "link")


# --- what the metadata says


def entries(facts: metadata.Metadata) -> list[filesystem._StorageInfo]:
    return list(facts.storage_data.values())


def set_all(**values: object) -> Edit:
    def change(facts: metadata.Metadata) -> None:
        for info in entries(facts):
            vars(info).update(values)

    return change


@pytest.mark.parametrize(
    "name", ["../x", "/etc/passwd", "a/b", "..", ".", "", "a\0b", "a\\b", "\udc80/"]
)
def test_paths_out_of_the_folder(folder: Path, name: str) -> None:
    edit(folder, set_all(relative_path=name))
    refused(folder, "found a file outside the checkpoint, wanted one inside")


@pytest.mark.parametrize(
    ("values", "found"),
    [
        ({"relative_path": "x" * 300}, "wanted also xxx"),
        ({"relative_path": None}, "found NoneType as its file, wanted a name"),
        ({"relative_path": 3}, "found 3 as its file, wanted a name"),
        ({"offset": -1}, "offset: found -1, wanted a plausible number"),
        ({"offset": 1 << 62}, "offset: found 4611686018427387904, wanted a plausible number"),
        ({"offset": True}, "offset: found True, wanted a plausible number"),
        ({"offset": 10**6}, "found at bytes 1000000 to"),
        ({"length": 10**9}, "truncated or damaged"),
        ({"length": "12"}, "length: found '12', wanted a plausible number"),
        ({"transform_descriptors": ["zstd"]}, "found transformed (compressed) data, wanted plain"),
    ],
)
def test_places(folder: Path, values: dict[str, object], found: str) -> None:
    edit(folder, set_all(**values))
    refused(folder, found)


def test_a_shard_that_was_cut(folder: Path) -> None:
    path = folder / "__0_0.distcp"
    os.truncate(path, path.stat().st_size - 1)
    refused(folder, "of __0_0.distcp, which has")


def w(facts: metadata.Metadata) -> metadata.TensorStorageMetadata:
    found = facts.state_dict_metadata["w"]
    assert isinstance(found, metadata.TensorStorageMetadata)
    return found


def move_chunk(facts: metadata.Metadata) -> None:
    """The second chunk one row up, over the first: the volume is right, the last row is not."""
    chunk = w(facts).chunks[1]
    (index,) = (i for i in facts.storage_data if i.fqn == "w" and i.offset == chunk.offsets)
    chunk.offsets = torch.Size((1, 0))
    facts.storage_data[replace(index, offset=chunk.offsets)] = facts.storage_data.pop(index)


@pytest.mark.parametrize(
    ("change", "found"),
    [
        (lambda f: w(f).chunks.pop(), "w: found chunks of 12 elements together, wanted 24"),
        (lambda f: w(f).chunks.append(w(f).chunks[0]), "w: found overlapping chunks [0, 0] of"),
        (move_chunk, "w: found overlapping chunks [0, 0] of sizes [2, 6] and [1, 0] of"),
        (lambda f: setattr(w(f), "size", torch.Size((4, 5))), "which is outside its [4, 5]"),
        (lambda f: setattr(w(f), "size", torch.Size((5, 6))), "24 elements together, wanted 30"),
        (lambda f: setattr(w(f), "size", torch.Size((4, 6, 1))), "2 offsets and 2 sizes, wanted 3"),
        (lambda f: setattr(w(f), "size", None), "w: size: found NoneType, wanted up to 64"),
        (lambda f: setattr(w(f), "size", (4, -6)), "w: size: found -6, wanted a plausible"),
        (lambda f: setattr(w(f), "size", (4, "6")), "w: size: found '6', wanted a plausible"),
        (lambda f: setattr(w(f), "chunks", 7), "w: found 7, wanted a list of chunks"),
        (lambda f: setattr(w(f), "chunks", [w(f)]), "found TensorMetadata, wanted ChunkMetadata"),
        (lambda f: delattr(w(f), "size"), "w: size: found NoneType"),
        (lambda f: delattr(w(f), "properties"), "w: found NoneType as its dtype, wanted one of"),
        (lambda f: f.state_dict_metadata.update(w=3), "w: found 3, wanted a tensor or bytes"),
        (lambda f: f.state_dict_metadata.update({3: w(f)}), "3: found it twice, or not named by"),
        (lambda f: setattr(f, "storage_data", None), "storage_data: found NoneType, wanted a dict"),
        (lambda f: f.storage_data.clear(), "found no entry that says where it lies"),
        (lambda f: f.storage_data.update({3: 4}), "storage_data: found 3, wanted Index"),
        (lambda f: delattr(f, "state_dict_metadata"), "state_dict_metadata: found NoneType"),
    ],
)
def test_structure(folder: Path, change: Edit, found: str) -> None:
    edit(folder, change)
    refused(folder, found)


# --- items


def open_all(folder: Path) -> None:
    """Read everything there is."""
    items = DcpItems(folder)
    found = read_metadata(folder)
    for tensor in found.tensors.values():
        for chunk in tensor.chunks:
            file, record = items.open_item(tensor.name, tensor.dtype, chunk)
            file.read(record.storage, record.offset, record.nbytes)
    for item in found.objects.values():
        items.open_object(item).verify()
    items.close()


def chunk_error(folder: Path, found: str) -> None:
    with pytest.raises(BadCheckpointError, match=re.escape(found)) as caught:
        open_all(folder)
    assert re.match(rf"{re.escape(str(folder))}/__0_\d.distcp: w", caught.value.message)
    assert caught.value.hint


def test_items_of_another_dtype_or_shape(folder: Path) -> None:
    open_all(folder)
    edit(folder, lambda facts: setattr(w(facts).properties, "dtype", torch.float16))
    chunk_error(folder, "chunk [0, 0]: found bfloat16 [2, 6], wanted float16 [2, 6] as the")

    def transpose(facts: metadata.Metadata) -> None:
        w(facts).size = torch.Size((12, 2))
        for at, chunk in enumerate(w(facts).chunks):
            chunk.sizes = torch.Size((6, 2))
            (old,) = (i for i in facts.storage_data if i.fqn == "w" and i.offset == chunk.offsets)
            chunk.offsets = torch.Size((6 * at, 0))
            facts.storage_data[replace(old, offset=chunk.offsets)] = facts.storage_data.pop(old)
        w(facts).properties.dtype = torch.bfloat16

    edit(folder, transpose)
    chunk_error(folder, "found bfloat16 [2, 6], wanted bfloat16 [6, 2] as the metadata says")


def test_an_item_that_is_no_tensor(folder: Path) -> None:
    def swap(facts: metadata.Metadata) -> None:
        places = {index.fqn: info for index, info in facts.storage_data.items()}
        for index in facts.storage_data:
            if index.fqn == "w":
                facts.storage_data[index] = places["extra"]

    edit(folder, swap)
    chunk_error(folder, "w: chunk [0, 0]: found list, wanted bfloat16 [2, 6]")


def test_an_item_that_is_none(folder: Path) -> None:
    def shift(facts: metadata.Metadata) -> None:
        for index, info in facts.storage_data.items():
            if index.fqn == "w":
                info.length -= 1

    edit(folder, shift)
    chunk_error(folder, "not a torch file that can be trusted")


def test_an_object_is_not_run(folder: Path) -> None:
    canary = folder / "canary"
    path = folder / "bomb.distcp"
    torch.save([Run(os.system, f"touch {canary}")], path)

    def plant(facts: metadata.Metadata) -> None:
        (index,) = (index for index in facts.storage_data if index.fqn == "extra")
        place = filesystem._StorageInfo(path.name, 0, path.stat().st_size)
        facts.storage_data[index] = place

    edit(folder, plant)
    found = read_metadata(folder).objects["extra"]
    assert repr(DcpItems(folder).open_object(found).root) == "[<posix.system as data>]"
    assert not canary.exists()


def test_a_flipped_bit_of_the_data(folder: Path) -> None:
    """torch would load it."""
    found = read_metadata(folder)
    chunk = found.tensors["w"].chunks[0]
    _, record = DcpItems(folder).open_item("w", "bfloat16", chunk)
    path = folder / chunk.file
    data = bytearray(path.read_bytes())
    data[record.storage.offset] ^= 1
    path.write_bytes(data)
    with pytest.raises(BadCheckpointError, match="damaged: its bytes have CRC32"):
        open_all(folder)


NASTY = [b"r\xff\xff\0\0", *(bytes([code]) for code in b"\x94}]us)\x85\x86Rb\x81h\0r(t.e\x93")]


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=400)
@given(st.data())
def test_random_damage_is_refused_or_harmless(folder: Path, data: st.DataObject) -> None:
    """Whatever happens to the metadata: a refusal, or what can be read. Never anything else."""
    path = folder / ".metadata"
    kept = folder / "kept"
    if not kept.exists():
        shutil.copy(path, kept)
    content = bytearray(kept.read_bytes())
    for _ in range(data.draw(st.integers(1, 3))):
        start = data.draw(st.integers(2, len(content) - 1))
        end = start + data.draw(st.sampled_from([0, 1, 2, 8]))
        source = data.draw(st.integers(0, len(content) - 1))
        copied = bytes(content[source : source + data.draw(st.integers(0, 12))])
        content[start:end] = data.draw(st.sampled_from([copied, *NASTY]))
    path.write_bytes(content)
    message = str(folder)
    try:
        open_all(folder)
    except FlmgrowError as error:
        message = error.message
    assert str(folder) in message
