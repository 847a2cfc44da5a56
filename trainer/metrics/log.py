"""The file of a run's metrics: a line of JSON per record, through resumes and repeated steps.

A run that goes on from a checkpoint repeats the steps after it, so :class:`MetricsLog` first drops
their lines: what stands in the file in the end is what an undisturbed run would have written, but
for times.

Importing this module loads neither torch nor megatron-core: ``flmgrow plot`` reads with it.
"""

import os
from collections.abc import Iterator
from json import dumps
from pathlib import Path
from typing import Annotated, Self

from pydantic import Field, TypeAdapter, ValidationError

from flmgrow.errors import BadDataError, OutputExistsError, UsageError
from flmgrow.storage.durable import close_quietly, storage_errors, write_all, write_small
from flmgrow.storage.validation import problems
from flmgrow.text import Text
from flmgrow.trainer.metrics.records import Record

OLD = ".old"

_STEP = b'"kind": "step"'
_READER: TypeAdapter[Record] = TypeAdapter(Annotated[Record, Field(discriminator="kind")])


class MetricsLog:
    """A file of records that grows by a line at a time.

    A reader sees whole lines, but for the last one of a run that was killed. To be closed, or used
    as a context.
    """

    def __init__(self, path: Path, stage: str, begin: int, *, resumed: bool) -> None:
        """Open the file for the steps of ``stage`` after ``begin``, dropping those it has.

        If nothing is ``resumed``, they are an earlier attempt's, and kept beside it under ``.old``.

        Raises:
            StorageError: The file system failed.
            OutputExistsError: If they are another stage's.
            BadDataError: If a line in the middle is damaged.
            UsageError: For what is no file.
        """
        self._path = path
        with storage_errors(path.parent, "creating"):
            path.parent.mkdir(parents=True, exist_ok=True)
        if path.exists() and not path.is_file():
            raise UsageError("is no ordinary file", "name another log.metrics", where=path)
        lines = _kept_lines(path, stage, begin, resumed=resumed) if path.exists() else ()
        kept = b"".join(lines)
        self.set_aside = 0
        """The steps of an earlier attempt."""
        with storage_errors(path, "opening"):
            unchanged = path.exists() and path.stat().st_size == len(kept)
            if not unchanged and not resumed and path.exists():
                self.set_aside = path.read_bytes().count(_STEP) - kept.count(_STEP)
                path.replace(path.with_name(path.name + OLD))
        if not unchanged:
            write_small(path, kept)
        with storage_errors(path, "opening"):
            self._descriptor = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
        self._position = len(kept)

    def write(self, record: Record) -> None:
        """Append a line.

        Raises:
            StorageError: The file system failed; the next record then takes the place of this one.
        """
        line = dumps(record.to_json(), ensure_ascii=False, allow_nan=False).encode() + b"\n"
        with storage_errors(self._path, f"writing at byte {self._position}"):
            write_all(self._descriptor, memoryview(line), self._position)
        self._position += len(line)

    def sync(self) -> None:
        """Put the lines on the disk.

        Raises:
            StorageError: The file system failed.
        """
        with storage_errors(self._path, "fsync"):
            os.fsync(self._descriptor)

    def close(self) -> None:
        """Put the lines on the disk, and close the file.

        Raises:
            StorageError: The file system failed.
        """
        try:
            self.sync()
        finally:
            close_quietly(self._descriptor)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def read_metrics(path: Path) -> list[Record]:
    """Return the records in a file, in its order.

    A last line that was cut is left out, and so are keys that this version does not know.

    Raises:
        BadDataError: For any other line that holds no record; the message names file and line.
        StorageError: The file system failed.
    """
    return [record for _, record in _lines(path)]


def _lines(path: Path) -> Iterator[tuple[bytes, Record]]:
    """Yield each whole line of a file with its record."""
    with storage_errors(path, "reading"), path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            if not line.endswith(b"\n"):
                return
            try:
                yield line, _READER.validate_json(line, strict=True)
            except ValidationError as error:
                raise BadDataError(
                    Text(f"{path}:{number}: holds no record: ", problems(error.errors())),
                    "remove the line if the file was edited, or the disk lost it",
                ) from None


def _kept_lines(path: Path, stage: str, begin: int, *, resumed: bool) -> Iterator[bytes]:
    for line, record in _lines(path):
        if not resumed and record.stage == stage:
            continue  # a validation before the first step, too
        if record.step <= begin:
            yield line
        elif record.stage != stage:
            raise OutputExistsError(
                f"holds step {record.step} of the stage {record.stage!r}, "
                f"{stage!r} begins after step {begin}",
                "give this stage a log.metrics of its own",
                where=path,
            )
