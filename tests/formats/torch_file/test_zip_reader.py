import io
import os
import struct
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from flmgrow.errors import BadCheckpointError
from flmgrow.formats.torch_file.zip_reader import END64, LOCATOR64, ZipRecord, read_directory
from flmgrow.formats.torch_file.zip_writer import ZipWriter
from flmgrow.storage.files import ReadOnlyFile

ENTRY_SIGNATURE = b"PK\x01\x02"


def directory_of(
    data: bytes | bytearray, folder: Path, base: int = 0, length: int | None = None
) -> dict[str, ZipRecord]:
    path = folder / "some.pt"
    path.write_bytes(data)
    file = ReadOnlyFile(path)
    try:
        return read_directory(file, base, length)
    finally:
        file.close()


def archive(records: dict[str, bytes], alignment: int = 64) -> bytearray:
    output = bytearray()
    writer = ZipWriter(
        {name: len(data) for name, data in records.items()}, output.extend, alignment
    )
    for data in records.values():
        writer.write_record([data])
    writer.finish()
    assert len(output) == writer.total_size
    return output


def torch_archive() -> bytearray:
    buffer = io.BytesIO()
    torch.save({"w": torch.arange(100.0), "empty": torch.zeros(0)}, buffer)
    return bytearray(buffer.getvalue())


def python_archive(records: dict[str, bytes]) -> bytearray:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as output:
        for name, data in records.items():
            output.writestr(name, data)
    return bytearray(buffer.getvalue())


def changed(data: bytearray, at: int, layout: str, *values: int) -> bytearray:
    copy = bytearray(data)
    struct.pack_into(layout, copy, at, *values)
    return copy


THREE = {"a/one": b"1" * 100, "a/two": b"2" * 50, "a/three": b""}


@pytest.mark.parametrize(
    "data", [torch_archive(), archive(THREE), python_archive(THREE)], ids=["torch", "own", "python"]
)
def test_agrees_with_pythons_zipfile(data: bytearray, tmp_path: Path) -> None:
    found = directory_of(data, tmp_path)
    with zipfile.ZipFile(io.BytesIO(data)) as other:
        assert list(found) == other.namelist()
        for name, record in found.items():
            content = data[record.offset : record.offset + record.nbytes]
            assert content == other.read(name)
            assert record.name == name
            assert record.crc == zlib.crc32(content)


def test_reads_an_archive_inside_a_file(tmp_path: Path) -> None:
    data = archive(THREE)
    alone = directory_of(data, tmp_path)
    inside = directory_of(b"before" + data + b"after", tmp_path, 6, len(data))
    assert {
        name: record._replace(offset=record.offset - 6) for name, record in inside.items()
    } == alone
    with pytest.raises(BadCheckpointError, match=r"some\.pt from byte 6: .*no end of the archive"):
        directory_of(b"before" + data + b"after", tmp_path, 6)


@pytest.mark.parametrize(("base", "length"), [(-1, 10), (0, -1), (5, 1 << 40), (1 << 40, 1)])
def test_refuses_slices_outside_the_file(base: int, length: int, tmp_path: Path) -> None:
    with pytest.raises(BadCheckpointError, match="truncated: wanted bytes"):
        directory_of(archive(THREE), tmp_path, base, length)


@pytest.mark.parametrize("missing", [1, 22, 98, 300, -1])
def test_truncated_files(missing: int, tmp_path: Path) -> None:
    data = torch_archive()
    data = data[: len(data) // 2] if missing < 0 else data[:-missing]
    with pytest.raises(BadCheckpointError, match=r"some\.pt: .*truncated or has trailing bytes"):
        directory_of(data, tmp_path)


def test_every_truncation_is_refused(tmp_path: Path) -> None:
    data = archive(THREE)
    for size in range(len(data)):
        with pytest.raises(BadCheckpointError):
            directory_of(data[:size], tmp_path)


@pytest.mark.parametrize("tail", [b"\0", b"PK\x05\x06", b"x" * 1000])
def test_trailing_bytes(tail: bytes, tmp_path: Path) -> None:
    with pytest.raises(BadCheckpointError, match="truncated or has trailing bytes"):
        directory_of(torch_archive() + tail, tmp_path)


def test_an_end_of_archive_with_a_comment(tmp_path: Path) -> None:
    data = archive(THREE)
    with pytest.raises(BadCheckpointError, match="trailing bytes"):
        directory_of(changed(data, len(data) - 2, "<H", 5), tmp_path)


@pytest.mark.parametrize(
    ("data", "found"),
    [
        (b"", "0 bytes are too few"),
        (b"PK", "2 bytes are too few"),
        (b"\x80\x02" + b"x" * 500, "files of torch before 1.6"),
        (b"sys_info\0" + b"\0" * 600, "files of torch before 1.6"),
        (b"#!/bin/sh\n" + bytes(archive(THREE)), "no zip header at its start"),
    ],
    ids=["empty", "short", "pickle", "tar", "script"],
)
def test_other_files(data: bytes, found: str, tmp_path: Path) -> None:
    with pytest.raises(BadCheckpointError, match=found):
        directory_of(data, tmp_path)


def with_entry(field: int, layout: str, *values: int) -> Callable[[bytearray], bytearray]:
    """A change at byte ``field`` of the directory's first entry."""
    return lambda data: changed(data, data.index(ENTRY_SIGNATURE) + field, layout, *values)


def with_end(field: int, layout: str, *values: int) -> Callable[[bytearray], bytearray]:
    """A change at byte ``field`` from the end of the file."""
    return lambda data: changed(data, len(data) - field, layout, *values)


def with_name(new: bytes) -> Callable[[bytearray], bytearray]:
    return lambda data: bytearray(data.replace(b"a/one", new))


END64_AT = 22 + LOCATOR64.size + END64.size
LOCATOR_AT = 22 + LOCATOR64.size


@pytest.mark.parametrize(
    ("change", "found"),
    [
        (with_entry(8, "<H", 0x0809), "is encrypted"),
        (with_entry(10, "<H", 8), "is compressed; torch.save never does that"),
        (with_entry(8, "<H", 0x0800), "local header disagrees"),
        (with_entry(20, "<I", 99), "has 99 stored bytes, wanted 100"),
        (with_entry(20, "<II", 1 << 30, 1 << 30), "reaches outside the file"),
        (with_entry(20, "<II", 0xFFFFFFFF, 0xFFFFFFFF), "has no zip64 sizes"),
        (with_entry(34, "<H", 1), "on one disk"),
        (with_entry(42, "<I", 1 << 30), "belong to no record"),
        (with_entry(42, "<I", 5), "overlaps|belong to no record"),
        (with_entry(28, "<H", 60_000), "ends inside an entry"),
        (with_entry(28, "<H", 4), "broken entry|disagrees"),
        (with_entry(0, "<I", 0), "broken entry"),
        (with_entry(30, "<H", 3), "broken"),
        (with_end(18, "<H", 1), "several disks|disagree"),
        (with_end(12, "<H", 2), "disagree"),
        (with_end(6, "<I", 3), "disagree"),
        (with_end(END64_AT, "<I", 0), "zip64 end of the archive is broken"),
        (with_end(END64_AT - 4, "<Q", 45), "zip64 end of the archive is broken"),
        (with_end(END64_AT - 16, "<I", 1), "disagree"),
        (with_end(END64_AT - 32, "<Q", 1 << 40), "disagree"),
        (with_end(LOCATOR_AT, "<I", 0), "directory is not where"),
        (with_end(LOCATOR_AT - 8, "<Q", 7), "not where it should be"),
        (with_end(4 + LOCATOR_AT - LOCATOR64.size, "<I", 0), "disagree|not where|trailing"),
        (lambda data: changed(data, 8, "<H", 8), "local header disagrees"),
        (lambda data: changed(data, 14, "<I", 7), "local header disagrees"),
        (lambda data: changed(data, 18, "<II", 7, 7), "local header disagrees"),
        (lambda data: changed(data, 26, "<H", 4), "local header disagrees"),
        (lambda data: changed(data, 28, "<H", 60_000), "reaches outside the file"),
        (lambda data: changed(data, 30, "<B", 98), "local header disagrees"),
        (with_name(b"../ne"), "unsafe record name '../ne'"),
        (with_name(b"/aone"), "unsafe record name '/aone'"),
        (with_name(b"a\0one"[:5]), "unsafe record name"),
        (with_name(b"a\\one"), "unsafe record name"),
        (with_name(b"a/\xffne"), "not utf-8"),
        (with_name(b"a/two"), "two records are called 'a/two'"),
        (with_name(b"A/TWO"), "two records are called 'a/two'"),
    ],
)
def test_refuses_what_torch_does_not_write(
    change: Callable[[bytearray], bytearray], found: str, tmp_path: Path
) -> None:
    data = change(archive(THREE))
    assert data != archive(THREE)
    with pytest.raises(BadCheckpointError, match=found) as refusal:
        directory_of(data, tmp_path)
    assert refusal.value.message.startswith(f"{tmp_path / 'some.pt'}: ")
    assert refusal.value.hint


def test_terminal_escapes_in_names_are_not_printed(tmp_path: Path) -> None:
    data = bytearray(python_archive(THREE).replace(b"a/one", b"/\x1b[2J"))
    with pytest.raises(BadCheckpointError, match="unsafe record name") as refusal:
        directory_of(data, tmp_path)
    assert refusal.value.message.isprintable()


def test_a_compressed_file(tmp_path: Path) -> None:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as output:
        output.writestr("a/data.pkl", bytes(1_000_000))
    with pytest.raises(BadCheckpointError, match="compressed"):
        directory_of(buffer.getvalue(), tmp_path)


@pytest.mark.parametrize("second", ["a/data.pkl", "a/DATA.pkl"])
def test_two_records_of_one_name(second: str, tmp_path: Path) -> None:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as output:
        output.writestr("a/data.pkl", b"first")
        output.writestr("a/other.bi", b"second")
    data = buffer.getvalue().replace(b"a/other.bi", second.encode())
    with pytest.raises(BadCheckpointError, match="two records are called"):
        directory_of(data, tmp_path)


def test_records_that_overlap(tmp_path: Path) -> None:
    """Many entries for the same bytes: a small file that unpacks to a huge one."""
    data = archive(THREE)
    second = data.index(ENTRY_SIGNATURE, data.index(ENTRY_SIGNATURE) + 4)
    with pytest.raises(BadCheckpointError, match=r"overlaps"):
        directory_of(changed(data, second + 42, "<I", 0), tmp_path)


def test_bytes_that_belong_to_no_record(tmp_path: Path) -> None:
    """A record taken out of the directory stays in the file, where other readers may find it."""
    data = python_archive(THREE)
    start = data.index(ENTRY_SIGNATURE)
    second = data.index(ENTRY_SIGNATURE, start + 4)
    third = data.index(ENTRY_SIGNATURE, second + 4)
    data = data[:second] + data[third:]
    end = len(data) - 22
    data = changed(data, end + 8, "<HHI", 2, 2, end - start)
    with pytest.raises(BadCheckpointError, match="belong to no record"):
        directory_of(data, tmp_path)


def test_more_records_than_can_be(tmp_path: Path) -> None:
    data = archive(THREE)
    data = changed(data, len(data) - END64_AT + 24, "<QQ", 1 << 40, 1 << 40)
    data = changed(data, len(data) - 14, "<HH", 0xFFFF, 0xFFFF)
    with pytest.raises(BadCheckpointError, match="over the limit"):
        directory_of(data, tmp_path)


def test_more_than_65535_records(tmp_path: Path) -> None:
    data = archive({f"a/data/{number}": b"" for number in range(70_000)}, alignment=1)
    assert len(directory_of(data, tmp_path)) == 70_000


def test_more_than_four_gigabytes(tmp_path: Path) -> None:
    """A record past every 32-bit number, and one behind it; the file is sparse, so nearly empty."""
    path = tmp_path / "large.pt"
    zeros = bytes(64 << 20)
    count = 66

    with path.open("wb") as output:

        def write(data: bytes | bytearray | memoryview) -> None:
            if len(data) == len(zeros):
                output.seek(len(data), os.SEEK_CUR)
            else:
                output.write(data)

        sizes = {"a/large": count * len(zeros), "a/behind": 6, "a/version": 2}
        writer = ZipWriter(sizes, write, 64)
        writer.write_record([zeros] * count)
        writer.write_record([b"behind"])
        writer.write_record([b"3\n"])
        writer.finish()
        assert output.tell() == writer.total_size > 1 << 32
    assert path.stat().st_blocks * 512 < 1 << 20

    file = ReadOnlyFile(path)
    records = read_directory(file)
    large, behind, _ = records.values()
    assert (large.name, large.nbytes, large.offset % 64) == ("a/large", count << 26, 0)
    assert behind.offset > 1 << 32
    assert behind.offset % 64 == 0
    assert file.read(behind.offset, behind.nbytes) == b"behind"
    file.close()
    with zipfile.ZipFile(path) as other:
        assert other.read("a/behind") == b"behind"
        info = other.getinfo("a/large")
        assert (info.file_size, info.CRC) == (large.nbytes, large.crc)
        with other.open("a/large") as start:
            assert start.read(10) == bytes(10)
    reader = torch._C.PyTorchFileReader(str(path))
    assert reader.get_record("behind") == b"behind"
    assert reader.get_record_size("large") == large.nbytes
