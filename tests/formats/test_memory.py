"""What a checkpoint's files make this program hold is bounded, however large they are.

Each case runs in a process of its own, which says how far its memory went above what it took with
everything imported. Files are sparse: they take no room on the disk.
"""

import struct
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from damage import rank_files
from pico import CONFIGS, even, make_checkpoint

from flmgrow.errors import BadCheckpointError
from flmgrow.formats.torch_file import machine, zip_writer
from flmgrow.formats.torch_file.file_writer import TorchFileWriter
from flmgrow.formats.torch_file.unpickler import unpickle
from flmgrow.formats.torch_file.values import Storage, TensorRecord

LARGE = 300 << 20
MOST = 48 << 20
"""Bytes; a tenth of it is what such a case takes."""

SCRIPT = """
import resource, sys
from pathlib import Path
from flmgrow.errors import FlmgrowError
from flmgrow.formats.opening import open_checkpoint
from flmgrow.formats.history.manifest import manifest_of
from flmgrow.formats.megatron.folders import iteration_folder
from flmgrow.formats.torch_file.file import TorchFile, scalar
from flmgrow.surgery.replicas import check_replicas
def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10
place = Path(sys.argv[1])
before = peak()
try:
    print({body})
except FlmgrowError as error:
    print(error)
print(peak() - before)
"""


def grown(place: Path, body: str) -> tuple[str, int]:
    """Run an expression on ``place``; return what it said, and by how many bytes memory grew."""
    command = [sys.executable, "-c", SCRIPT.format(body=body), str(place)]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=900)
    *said, grown = done.stdout.splitlines()
    return "\n".join(said), int(grown)


def sparse(path: Path, size: int = LARGE) -> None:
    with path.open("ab") as file:
        file.truncate(size)


def a_large_tensor(
    path: Path, monkeypatch: pytest.MonkeyPatch, count: int = 1, sums: bool = False
) -> None:
    """A file of one tensor: ``count`` elements of a large storage, most of it a hole."""
    if not sums:
        monkeypatch.setattr(zip_writer, "crc32", lambda *_: 0)
    storage = Storage("FloatStorage", LARGE // 4)
    record = TensorRecord(storage, "float32", (count,), (1,), start=LARGE // 8)
    with path.open("wb") as file:

        def write(data: bytes | bytearray | memoryview) -> None:
            if len(data) > 1 << 16:
                file.seek(len(data), 1)
            else:
                file.write(data)

        writer = TorchFileWriter(record, write)
        writer.write_storage(storage, (bytes(1 << 20) for _ in range(LARGE >> 20)))
        writer.finish()


@pytest.mark.parametrize("sums", [False, True])
def test_a_number_in_a_large_storage(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, sums: bool
) -> None:
    a_large_tensor(tmp_path / "file.pt", monkeypatch, sums=sums)
    said, memory = grown(tmp_path / "file.pt", "scalar(TorchFile(place).root)")
    assert said == "0.0"
    assert memory < MOST


def test_a_large_tensor_is_verified_in_pieces(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    a_large_tensor(tmp_path / "file.pt", monkeypatch, sums=True)
    said, memory = grown(tmp_path / "file.pt", "TorchFile(place).verify() > 300 << 20")
    assert said == "True"
    assert memory < MOST


def test_a_large_tracker(tmp_path: Path) -> None:
    place = tmp_path / "latest_checkpointed_iteration.txt"
    sparse(place)
    said, memory = grown(tmp_path, "iteration_folder(place, None)")
    assert "wanted a number or 'release'" in said
    assert memory < MOST


def test_copies_in_files_without_sums_are_compared_in_pieces(tmp_path: Path) -> None:
    config = replace(CONFIGS["llama"], vocab=1_500_000)
    torch.serialization.set_crc32_options(False)
    try:
        source = make_checkpoint(tmp_path / "source", config, even(config, pp=2), dtype="float32")
    finally:
        torch.serialization.set_crc32_options(True)
    assert sum(file.stat().st_size for file in rank_files(source)) > 2 * MOST
    said, memory = grown(source, "len(check_replicas(open_checkpoint(place).reader))")
    assert said == "0"
    assert memory < MOST


def zip_of_a_large_directory(path: Path) -> None:
    with path.open("wb") as file:
        file.write(b"PK\3\4")
        file.truncate(LARGE)
        file.seek(LARGE)
        count = 0xFFFF
        file.write(struct.pack("<IHHHHIIH", 0x06054B50, 0, 0, count, count, LARGE - 4, 4, 0))


def zip_of_a_large_pickle(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.save([], path)
    monkeypatch.setattr(zip_writer, "crc32", lambda *_: 0)
    with path.open("wb") as file:

        def write(data: bytes | bytearray | memoryview) -> None:
            if len(data) > 1 << 16:
                file.seek(len(data), 1)
            else:
                file.write(data)

        archive = zip_writer.ZipWriter({"archive/data.pkl": LARGE}, write, 64)
        archive.write_record(bytes(1 << 20) for _ in range(LARGE >> 20))
        archive.finish()


FILES: dict[str, Callable[[Path, pytest.MonkeyPatch], object]] = {
    "directory": lambda path, _: zip_of_a_large_directory(path),
    "pickle": zip_of_a_large_pickle,
}


@pytest.mark.parametrize("kind", FILES)
def test_parts_that_are_read_whole_are_small(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    FILES[kind](tmp_path / "file.pt", monkeypatch)
    said, memory = grown(tmp_path / "file.pt", "TorchFile(place)")
    assert "over the limit" in said or "wanted at most" in said
    assert memory < MOST


PIECES = pytest.mark.parametrize(
    ("piece", "count"),
    [(b"\x8f", 4 << 20), (b"}", 16 << 20), (b")\x94", 8 << 20), (b"h\0)R", 4 << 20)],
    ids=["sets", "dicts", "memory", "calls"],
)


def hostile_pickle(piece: bytes, count: int) -> bytes:
    return b"\x80\x04casdf\nX\nq\x000(" + piece * count + b"t."


@PIECES
def test_what_a_pickle_makes_is_weighed(
    monkeypatch: pytest.MonkeyPatch, piece: bytes, count: int
) -> None:
    monkeypatch.setattr(machine, "MAX_WEIGHT", machine.MAX_WEIGHT >> 8)
    unpickle(hostile_pickle(piece, count >> 12), "file", {})
    with pytest.raises(BadCheckpointError, match="takes more than 3 MiB of memory"):
        unpickle(hostile_pickle(piece, count >> 8), "file", {})


@pytest.mark.slow
@PIECES
def test_instructions_that_make_much_of_a_byte(tmp_path: Path, piece: bytes, count: int) -> None:
    """A pickle of a few megabytes whose values would take gigabytes."""
    (tmp_path / "data").write_bytes(hostile_pickle(piece, count))
    body = (
        "__import__('flmgrow.formats.torch_file.unpickler').formats.torch_file.unpickler.unpickle("
    )
    said, memory = grown(tmp_path / "data", body + "place.read_bytes(), 'file', {})")
    assert "of memory" in said or "instructions" in said
    assert memory < 1200 << 20


@pytest.mark.parametrize("name", [".metadata", "flmgrow.json"])
def test_a_large_file_beside_the_weights(tmp_path: Path, name: str) -> None:
    source = make_checkpoint(tmp_path / "source", "llama")
    (file,) = rank_files(source)
    folder = source if name == "flmgrow.json" else file.parents[1]
    if name != "flmgrow.json":
        (folder / "metadata.json").write_text('{"sharded_backend": "torch_dist"}')
        (folder / ".metadata").write_bytes(b"\x80\x02}.")
    sparse(folder / name, (1 << 29) + 1 if name == ".metadata" else LARGE)
    said, memory = grown(source, "manifest_of(open_checkpoint(place))")
    assert "at most" in said or "bytes" in said
    assert memory < MOST
