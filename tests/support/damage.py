"""Rewriting checkpoints: consistently, as another program would, or damaging them byte by byte."""

import json
import warnings
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
import xxhash

from flmgrow.formats.history.manifest import sealed
from flmgrow.formats.torch_file.file import TorchFile
from flmgrow.formats.torch_file.values import TensorRecord
from flmgrow.storage.checksums import FileRecord

State = dict[str, Any]
Change = Callable[[State], object]
Records = list[tuple[str, bytes]]


def rank_files(root: Path) -> list[Path]:
    """Return the file of every rank, in the order of their names."""
    return sorted(root.glob("*/mp_rank_*/model_optim_rng.pt"))


def edit(file: Path, change: Change) -> None:
    """Rewrite a rank's file with torch, which makes its sums right again."""
    content = torch.load(file, weights_only=False)
    change(content)
    torch.save(content, file)


def edit_all(root: Path, change: Change) -> None:
    """Rewrite every rank's file, and correct the manifest's sums if there is one."""
    for file in rank_files(root):
        edit(file, change)
    if (root / "flmgrow.json").exists():
        correct_sums(root)


def edit_manifest(root: Path, change: Change) -> None:
    """Change the manifest in every place where it lies, and make its own sums right again."""
    for path in [root / "flmgrow.json", *root.glob("*/flmgrow.json")]:
        manifest = json.loads(path.read_text())
        change(manifest)
        whole = isinstance(manifest.get("receipt", 0), dict | None)
        path.write_bytes(sealed(manifest) if whole else json.dumps(manifest).encode())


def correct_sums(root: Path) -> None:
    """Make the manifest record the files as they are now."""

    def record(path: str) -> dict[str, object]:
        data = (root / path).read_bytes()
        return asdict(FileRecord(path, len(data), xxhash.xxh3_128_hexdigest(data)))

    def change(manifest: State) -> None:
        manifest["files"] = [record(file["path"]) for file in manifest["files"]]

    edit_manifest(root, change)


def with_arguments(**values: object) -> Change:
    """Return the change that sets training arguments."""

    def change(content: State) -> None:
        content["args"].__dict__.update(values)

    return change


def with_tensor(key: str, make: Callable[[torch.Tensor], object]) -> Change:
    """Return the change that replaces a parameter, in the first chunk, by what is made from it."""

    def change(content: State) -> None:
        model = content["model"]
        model[key] = make(model[key])

    return change


# --- below torch: records and bytes


def read_records(file: Path) -> Records:
    with zipfile.ZipFile(file) as archive:
        return [(name, archive.read(name)) for name in archive.namelist()]


def write_records(file: Path, records: Records, compression: int = zipfile.ZIP_STORED) -> None:
    """Write a file anew from its records, with sums that are right."""
    with warnings.catch_warnings(), zipfile.ZipFile(file, "w", compression) as archive:
        warnings.simplefilter("ignore", UserWarning)  # of two records with one name
        for name, data in records:
            archive.writestr(name, data)


def replace_record(file: Path, end: str, change: Callable[[bytes], bytes]) -> None:
    """Change the record whose name ends so, and make its sum right."""
    records = read_records(file)
    write_records(file, [(n, change(d) if n.endswith(end) else d) for n, d in records])


def record_of(file: Path, key: str) -> str:
    """Return the name of the record that holds a parameter's bytes."""
    with TorchFile(file) as opened:
        assert isinstance(opened.root, dict)
        tensor = opened.root["model"][key]
    assert isinstance(tensor, TensorRecord)
    return tensor.storage.name


def place_of(file: Path, record: str) -> int:
    """Return where in the file a record's bytes begin."""
    with zipfile.ZipFile(file) as archive:
        header = next(i for i in archive.infolist() if i.filename.endswith(record)).header_offset
    local = file.read_bytes()[header : header + 30]
    name, extra = (int.from_bytes(local[i : i + 2], "little") for i in (26, 28))
    return header + 30 + name + extra


def flip_bit(file: Path, record: str, byte: int = 0, bit: int = 0) -> None:
    """Flip one bit of a record and leave everything else, its sum too, as it is."""
    place = place_of(file, record) + byte
    data = bytearray(file.read_bytes())
    data[place] ^= 1 << bit
    file.write_bytes(data)


def contents(folder: Path) -> dict[str, str]:
    """Return everything below a folder: kind, and for files a sum and the time of change."""
    return {str(path.relative_to(folder)): _state(path) for path in _everything(folder)}


def _everything(folder: Path) -> Iterator[Path]:
    yield from folder.rglob("*")


def _state(path: Path) -> str:
    status = path.lstat()
    kind = f"{status.st_mode:o}"
    if not path.is_file() or path.is_symlink():
        return kind
    return f"{kind} {xxhash.xxh3_128_hexdigest(path.read_bytes())} {status.st_mtime_ns}"
