"""The records of a run as event files for TensorBoard."""

from collections.abc import Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from flmgrow.errors import UsageError
from flmgrow.storage.durable import storage_errors
from flmgrow.trainer.metrics.records import Measured

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

_COUNTS = ("step", "samples", "tokens", "flops")


class TensorBoard:
    """Event files for TensorBoard: each number against the step, and again against the tokens.

    Tags are ``steps/NAME`` and ``tokens/NAME``, with the names of the file of metrics.
    """

    def __init__(self, folder: Path) -> None:
        """Open the folder.

        Raises:
            UsageError: If the package tensorboard is missing.
        """
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError:
            raise UsageError(
                "the package tensorboard is not installed",
                "pip install 'flmgrow[tensorboard]', or leave out log.tensorboard",
                where=folder,
            ) from None
        self._folder = folder
        self._make = SummaryWriter
        self._writers: dict[str, SummaryWriter] = {}

    def write(self, record: Measured) -> None:
        """Add the numbers of a record.

        Raises:
            StorageError: The file system failed.
        """
        with storage_errors(self._folder, "writing"):
            for axis, now in (("steps", record.step), ("tokens", record.tokens)):
                for name, value in scalars(record).items():
                    self._writer(axis, now).add_scalar(f"{axis}/{name}", value, now)

    def sync(self) -> None:
        """Write what is held in memory.

        Raises:
            StorageError: The file system failed.
        """
        with storage_errors(self._folder, "writing"):
            for writer in self._writers.values():
                writer.flush()

    def close(self) -> None:
        """Write what is held in memory, and close the files.

        Raises:
            StorageError: The file system failed.
        """
        with storage_errors(self._folder, "writing"):
            for writer in self._writers.values():
                writer.close()

    def _writer(self, axis: str, now: int) -> "SummaryWriter":
        """Return the writer of an axis: one writer has one kind of x.

        What an earlier attempt wrote from the first record on is dropped.
        """
        if axis not in self._writers:
            self._writers[axis] = self._make(str(self._folder / axis), purge_step=now)
        return self._writers[axis]

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def scalars(record: Measured) -> dict[str, float]:
    """Return what a record measured, by name; what is measured of parts as ``masks/DIMENSION``."""
    return dict(_numbers({k: v for k, v in asdict(record).items() if k not in _COUNTS}))


def _numbers(fields: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, float]]:
    for name, value in fields.items():
        if isinstance(value, dict):
            yield from _numbers(value, f"{prefix}{name}/")
        elif isinstance(value, int | float):
            yield f"{prefix}{name}", value
