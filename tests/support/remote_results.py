"""Results in an object store: the command of most tests, and what must be there."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import moto.s3.models
import pytest
from commands import Outcome, flmgrow, refused
from object_store import ObjectStore, served

from flmgrow.storage.remote import writing

MARKER = ".flmgrow/complete"
SMALL_PART = 6000
_RUN = (
    "import sys; from flmgrow.storage.remote import writing; "
    f"writing.PART = {SMALL_PART}; from flmgrow.cli import main; sys.exit(main())"
)


@contextmanager
def served_in_small_parts(kind: type[ObjectStore] = ObjectStore) -> Iterator[ObjectStore]:
    """A server that takes parts of any size, so that small files are sent in many."""
    with pytest.MonkeyPatch.context() as patch, served(patch, kind) as server:
        patch.setattr(moto.s3.models, "S3_UPLOAD_PART_MIN_SIZE", 1)
        patch.setattr(writing, "PART", SMALL_PART)
        yield server


def files_of(folder: Path) -> dict[str, bytes]:
    paths = [path for path in folder.rglob("*") if path.is_file()]
    return {str(path.relative_to(folder)): path.read_bytes() for path in paths}


def objects_of(remote: ObjectStore, key: str) -> dict[str, bytes]:
    return {name.removeprefix(f"{key}/"): remote.get(name) for name in remote.keys(f"{key}/")}


def write(remote: ObjectStore, source: Path, key: str, *more: object) -> Outcome:
    return flmgrow("reshard", source, remote.address(key), "--tp", "2", *more)


def check_complete(
    remote: ObjectStore, key: str, wanted: dict[str, bytes], uploads: bool = False
) -> None:
    """Everything is there and nothing else, but for ``uploads`` that nobody could end."""
    found = objects_of(remote, key)
    assert json.loads(found.pop(MARKER))["files"] == len(wanted)
    assert found == wanted
    assert uploads or remote.uploads(f"{key}/") == []


def check_incomplete(remote: ObjectStore, key: str, place: Path) -> None:
    """Nobody takes it for a checkpoint, though the objects of some files are there."""
    assert MARKER not in objects_of(remote, key)
    refused(3, "is not complete.*it resumes", "inspect", remote.address(key), place=place)


def in_a_process(remote: ObjectStore, *arguments: object) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        [sys.executable, "-c", _RUN, *map(str, arguments)],
        env={**os.environ, **remote.environment()},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
