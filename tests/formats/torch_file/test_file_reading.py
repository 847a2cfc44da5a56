"""What is read is checked; a damaged or hostile file is refused, or its damage is harmless."""

import io
import random
import threading
import zipfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch_files import loaded, records_of, same, saved, storage_of, values_of, written

from flmgrow.errors import BadCheckpointError
from flmgrow.formats.torch_file import file as torch_zip
from flmgrow.formats.torch_file.file import TorchFile
from flmgrow.formats.torch_file.objects import walk_tensors
from flmgrow.storage import crc


def open_descriptors(path: Path) -> int:
    links = []
    for link in Path("/proc/self/fd").iterdir():
        try:
            links.append(link.readlink())
        except OSError:
            continue
    return links.count(path)


# --- reading


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return saved({"w": torch.arange(1000.0), "v": torch.ones(5)}, tmp_path / "some.pt")


def test_reads_byte_ranges(path: Path) -> None:
    with TorchFile(path) as file:
        storage = storage_of(file, "w")
        assert file.read(storage, 40, 8) == np.array([10, 11], dtype=np.float32).tobytes()
        target = bytearray(4)
        file.read_into(storage, 3996, memoryview(target))
        assert target == np.float32(999).tobytes()
        assert file.read(storage, 4000, 0) == b""
        for offset, count in ((3997, 4), (-1, 1), (0, 1 << 50)):
            with pytest.raises(BadCheckpointError, match=r"some\.pt: some/data/0: has 4000 bytes"):
                file.read(storage, offset, count)
    with TorchFile(path) as other, pytest.raises(ValueError, match="is not of"):
        other.read(storage, 0, 1)


def test_storages_outlive_the_file(path: Path) -> None:
    with TorchFile(path) as file:
        root = file.root
    assert same(loaded(written(root)), loaded(path.read_bytes()))
    file.close()


def test_reads_a_file_inside_a_file(path: Path, tmp_path: Path) -> None:
    data = path.read_bytes()
    outer = tmp_path / "__0_0.distcp"
    outer.write_bytes(b"x" * 1001 + data + b"y" * 77)
    with TorchFile(outer, base=1001, length=len(data)) as file:
        assert file.read(storage_of(file, "v"), 0, 4) == np.float32(1).tobytes()
        assert file.verify() > 4000
        assert written(file.root, "some") == written(TorchFile(path).root, "some")


def count_crc(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Collects the number of bytes of each CRC32 that is computed from here on."""
    counted: list[int] = []
    original = crc.crc32

    def counting(data: Any, value: int = 0) -> int:
        counted.append(len(data))
        return original(data, value)

    monkeypatch.setattr(torch_zip, "crc32", counting)
    return counted


def test_a_storage_is_checked_once_however_many_threads(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with TorchFile(path) as file:
        counted = count_crc(monkeypatch)
        storage = storage_of(file, "w")
        start = threading.Barrier(8)

        def read(number: int) -> bytes:
            start.wait()
            return file.read(storage, 4 * number, 4)

        with ThreadPoolExecutor(8) as pool:
            found = list(pool.map(read, range(8)))
        assert found == [np.float32(number).tobytes() for number in range(8)]
        assert counted == [4000]


def test_verify_reads_everything(path: Path) -> None:
    with TorchFile(path) as file:
        seen: list[int] = []
        total = file.verify(seen.append)
        assert total == sum(seen) == sum(record.nbytes for record in file.records.values())


def test_files_without_checksums_are_read(tmp_path: Path) -> None:
    torch.serialization.set_crc32_options(False)
    try:
        path = saved({"w": torch.ones(3)}, tmp_path / "some.pt")
    finally:
        torch.serialization.set_crc32_options(True)
    with TorchFile(path) as file:
        assert not file.has_checksums
        assert file.verify() == 0
        assert file.read(storage_of(file, "w"), 0, 4) == np.float32(1).tobytes()
        assert records_of(written(file.root))  # with checksums


# --- damaged and hostile files


def flipped(path: Path, position: int) -> None:
    data = bytearray(path.read_bytes())
    data[position] ^= 1
    path.write_bytes(data)


def test_a_flipped_bit_in_the_weights(path: Path) -> None:
    with TorchFile(path) as file:
        position = storage_of(file, "w").offset + 2001
    flipped(path, position)
    assert torch.load(path)["w"][500] != 500  # torch does not notice
    message = r"some\.pt: some/data/0: damaged: its bytes have CRC32 [0-9a-f]{8}, wanted"
    with TorchFile(path) as file:
        storage = storage_of(file, "w")
        for _ in range(2):
            with pytest.raises(BadCheckpointError, match=message):
                file.read(storage, 0, 4)  # not the damaged place: the whole record is checked
        with pytest.raises(BadCheckpointError, match=message):
            file.read_into(storage, 0, memoryview(bytearray(4)))
        with pytest.raises(BadCheckpointError, match=message):
            file.verify()
        with pytest.raises(BadCheckpointError, match=message):
            written(file.root)
        assert file.read(storage_of(file, "v"), 0, 4) == np.float32(1).tobytes()


def test_a_flipped_bit_in_a_name(path: Path) -> None:
    data = path.read_bytes()
    flipped(path, data.index(b"X\x01\0\0\0w") + 5)
    assert list(torch.load(path)) == ["v"]  # w became v, and torch keeps one of the two
    with pytest.raises(BadCheckpointError, match=r"some\.pt: some/data\.pkl: damaged"):
        TorchFile(path)


def archive(records: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as output:
        for name, data in records.items():
            output.writestr(name, data)
    return buffer.getvalue()


NOTHING = b"\x80\x02N."


@pytest.mark.parametrize(
    ("records", "found"),
    [
        ({"a/x": b""}, "holds 0 data.pkl records"),
        ({"data.pkl": NOTHING}, "holds 0 data.pkl records"),
        ({"a/b/data.pkl": NOTHING}, "holds 0 data.pkl records"),
        ({"a/data.pkl": NOTHING, "b/data.pkl": NOTHING}, "holds 2 data.pkl records"),
        ({"a/data.pkl": NOTHING, "a/constants.pkl": b""}, "is a TorchScript archive"),
        ({"a/data.pkl": NOTHING, "a/byteorder": b"big"}, "byteorder: found big-endian"),
        ({"a/data.pkl": NOTHING, "a/byteorder": b"litter"}, "byteorder: found big-endian"),
        ({"a/data.pkl": b""}, "data.pkl: broken pickle"),
        ({"a/data.pkl": b"\x80\x02cos\nsystem\n"}, "data.pkl: broken pickle"),
    ],
)
def test_refuses_other_archives(records: dict[str, bytes], found: str, tmp_path: Path) -> None:
    path = tmp_path / "some.pt"
    path.write_bytes(archive(records))
    with pytest.raises(BadCheckpointError) as refusal:
        TorchFile(path)
    assert refusal.value.message.startswith(f"{path}: ")
    assert found in refusal.value.message
    assert refusal.value.hint
    assert open_descriptors(path) == 0


def test_a_huge_pickle(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch_zip, "MAX_PICKLE_BYTES", 10)
    with pytest.raises(BadCheckpointError, match=r"data\.pkl: has \d+ bytes, wanted at most 10"):
        TorchFile(path)


def test_a_storage_larger_than_its_record(tmp_path: Path) -> None:
    """The lie that makes torch hand out the bytes of the file's neighbours as weights."""
    path = saved({"w": torch.ones(7), "secret": torch.ones(9)}, tmp_path / "some.pt")
    records = records_of(path.read_bytes())
    pickled = records["some/data.pkl"]
    records["some/data.pkl"] = pickled.replace(b"K\x07tq", b"K\x0etq", 1)
    assert records["some/data.pkl"] != pickled
    path.write_bytes(archive(records))
    message = r"some\.pt: data\.pkl: storage '0': record has 28 bytes, 14 x FloatStorage needs 56"
    with pytest.raises(BadCheckpointError, match=message):
        TorchFile(path)


@pytest.mark.parametrize("kind", ["empty", "folder", "missing"])
def test_not_even_a_file(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "some.pt"
    if kind == "empty":
        path.touch()
    elif kind == "folder":
        path.mkdir()
    with pytest.raises(BadCheckpointError, match=r"some\.pt: "):
        TorchFile(path)
    assert open_descriptors(path) == 0


@pytest.fixture(scope="module")
def sample(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, bytes, object]:
    path = tmp_path_factory.mktemp("damage") / "some.pt"
    state = {"w": torch.arange(20.0), "v": [torch.ones(3).bfloat16()], "n": 3, "s": {"k": "text"}}
    return path, saved(state, path).read_bytes(), contents(path)


def contents(path: Path) -> object:
    """All that can be read from a file: its data, with the bytes of each tensor in their place."""
    with TorchFile(path) as file:
        file.verify()
        found = {
            keys: (record.dtype, record.shape, values_of(file, record))
            for keys, record in walk_tensors(file.root)
        }
        assert isinstance(file.root, dict)
        return found, list(file.root), file.root["n"], file.root["s"]


@settings(max_examples=500, deadline=None)
@given(st.data())
def test_damage_is_refused_or_harmless(
    sample: tuple[Path, bytes, object], data: st.DataObject
) -> None:
    path, intact, wanted = sample
    damaged = bytearray(intact)
    start = data.draw(st.integers(0, len(damaged) - 1))
    count = data.draw(st.integers(1, 64))
    match data.draw(st.sampled_from(["flip", "cut", "insert", "zero", "duplicate"])):
        case "flip":
            damaged[start] ^= 1 << data.draw(st.integers(0, 7))
        case "cut":
            del damaged[start : start + count]
        case "insert":
            damaged[start:start] = data.draw(st.binary(min_size=1, max_size=64))
        case "zero":
            damaged[start : start + count] = bytes(len(damaged[start : start + count]))
        case "duplicate":
            damaged[start:start] = damaged[start : start + count]
    path.unlink(missing_ok=True)
    path.write_bytes(damaged)
    message = f"{path}"
    try:
        found = contents(path)
    except BadCheckpointError as refusal:
        message = refusal.message
    else:
        assert found == wanted
    assert message.startswith(f"{path}")
    assert message.isprintable()
    assert open_descriptors(path) == 0


def test_each_flipped_bit_of_the_data_is_found(sample: tuple[Path, bytes, object]) -> None:
    path, intact, _ = sample
    path.write_bytes(intact)
    with TorchFile(path) as file:
        records = [record for record in file.records.values() if record.nbytes]
    choose = random.Random(0)
    for _ in range(300):
        record = choose.choice(records)
        damaged = bytearray(intact)
        damaged[record.offset + choose.randrange(record.nbytes)] ^= 1 << choose.randrange(8)
        path.write_bytes(damaged)
        with pytest.raises(BadCheckpointError):
            contents(path)
