"""Output folders of one plan: begun, interrupted, and what is in them."""

from pathlib import Path
from typing import Any

import xxhash

from flmgrow.storage.checksums import FileRecord
from flmgrow.storage.output import OutputFolder

PLAN = {"source": "d41d", "options": {"tp": 4, "pp": 2}}
SHARD = "iter_0000004/mp_rank_00_000/model_optim_rng.pt"


def names(folder: Path) -> list[str]:
    return sorted(each.name for each in folder.iterdir())


def open_files() -> int:
    return len(names(Path("/proc/self/fd")))


def interrupt(out: Path, stop: type[BaseException]) -> None:
    """Finish one file and stop in the middle of the second."""
    with OutputFolder(out, PLAN) as folder:
        write(folder, SHARD, b"first")
        with folder.file("second", 100) as file:
            file.write(b"x")
            raise stop


def write(folder: OutputFolder, name: str, data: bytes) -> None:
    with folder.file(name, len(data)) as file:
        file.write(data)


def begin(out: Path, plan: dict[str, Any] = PLAN) -> None:
    """An interrupted run that finished one file."""
    with OutputFolder(out, plan) as folder:
        write(folder, SHARD, b"first")


def record_of(path: str, data: bytes) -> FileRecord:
    return FileRecord(path, len(data), xxhash.xxh3_128_hexdigest(data))
