"""Writing and reading the metrics of a run, one JSON line per step.

What a run has done must be read by people, by programs, and by the same run when it is resumed.
Every optimizer step becomes a :class:`StepRecord`, every validation a :class:`ValidationRecord`. In
the file each is a line of JSON, and numbers come back as they were, to the last bit. A run that
goes on from a checkpoint repeats the steps after it, so :class:`MetricsLog` first drops their
lines: what stands in the file in the end is what an undisturbed run would have written, but for
times. :class:`TensorBoard` takes the same records, and :func:`progress_line` is what a terminal
shows of them.

Importing this module loads neither torch nor megatron-core: ``flmgrow plot`` reads with it.
"""

import math
import os
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from json import dumps
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal, Self

from pydantic import BeforeValidator, Field, TypeAdapter, ValidationError

from flmgrow.errors import BadDataError, OutputExistsError, UsageError
from flmgrow.model.masks import Dimension
from flmgrow.model.wording import clock_text
from flmgrow.storage.durable import close_quietly, storage_errors, write_all, write_small
from flmgrow.storage.strict_json import Json
from flmgrow.storage.validation import problems
from flmgrow.text import Text

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter
OLD = ".old"
COUNTS = ("step", "samples", "tokens", "flops")

_STEP = b'"kind": "step"'
_UNITS = ((1e9, "B"), (1e6, "M"), (1e3, "k"))
_WORDS = {"NaN": math.nan, "Infinity": math.inf, "-Infinity": -math.inf}


def _number(value: object) -> object:
    """Return the number that JSON has no digits for; anything else as it is."""
    return _WORDS.get(value, value) if isinstance(value, str) else value


Number = Annotated[float, BeforeValidator(_number)]


@dataclass(frozen=True)
class StepRecord:
    """An optimizer step.

    ``step`` counts over all stages, and so do ``samples``, ``tokens`` and ``flops``, which include
    this step's. Losses are in nats per token; the two parts of ``loss`` are None where data is not
    mixed. ``seconds`` is the wall time of the step, ``model_tflops`` is of one device in 1e12 per
    second, ``utilisation`` its share of the device's peak (0 to 1, None without a known peak).
    ``masks`` has the value of each mask that is below 1.
    """

    step: int
    samples: int
    tokens: int
    flops: int
    loss: Number
    language_loss: Number | None
    teacher_loss: Number | None
    grad_norm: Number
    learning_rate: Number
    seconds: Number
    tokens_per_second: Number
    model_tflops: Number
    utilisation: Number | None
    masks: Mapping[Dimension, float]
    stage: str
    kind: Literal["step"] = "step"

    def to_json(self) -> Json:
        """Return the record as plain data."""
        return _plain(self)


@dataclass(frozen=True)
class ValidationRecord:
    """The loss on text that is held out, after ``step`` steps, in nats per token."""

    step: int
    tokens: int
    flops: int
    validation_loss: Number
    stage: str
    kind: Literal["validation"] = "validation"

    def to_json(self) -> Json:
        """Return the record as plain data."""
        return _plain(self)


Record = StepRecord | ValidationRecord

_READER: TypeAdapter[Record] = TypeAdapter(Annotated[Record, Field(discriminator="kind")])


class MetricsLog:
    """A file of records that grows by a line at a time.

    A reader sees whole lines, but for the last one of a run that was killed. To be closed, or used
    as a context.
    """

    def __init__(self, path: Path, stage: str, begin: int, *, resumed: bool) -> None:
        """Open the file for the steps of ``stage`` after ``begin``, dropping those it has.

        If nothing is ``resumed``, they are an earlier attempt's, and kept beside it under
        ``.old``. Raises StorageError; OutputExistsError if they are another stage's; BadDataError
        if a line in the middle is damaged; UsageError for what is no file.
        """
        self._path = path
        with storage_errors(path.parent, "creating"):
            path.parent.mkdir(parents=True, exist_ok=True)
        if path.exists() and not path.is_file():
            raise UsageError("is no ordinary file", "name another log.metrics", where=path)
        kept = b"".join(_kept_lines(path, stage, begin)) if path.exists() else b""
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
        """Append a line. Raises StorageError; the next record then takes the place of this one."""
        line = dumps(record.to_json(), ensure_ascii=False, allow_nan=False).encode() + b"\n"
        with storage_errors(self._path, f"writing at byte {self._position}"):
            write_all(self._descriptor, memoryview(line), self._position)
        self._position += len(line)

    def sync(self) -> None:
        """Put the lines on the disk. Raises StorageError."""
        with storage_errors(self._path, "fsync"):
            os.fsync(self._descriptor)

    def close(self) -> None:
        """Put the lines on the disk, and close the file. Raises StorageError."""
        try:
            self.sync()
        finally:
            close_quietly(self._descriptor)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class TensorBoard:
    """Event files for TensorBoard: each number against the step, and again against the tokens.

    Tags are ``steps/NAME`` and ``tokens/NAME``, with the names of the file of metrics.
    """

    def __init__(self, folder: Path) -> None:
        """Open the folder. Raises UsageError if the package tensorboard is missing."""
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

    def write(self, record: Record) -> None:
        """Add the numbers of a record. Raises StorageError."""
        with storage_errors(self._folder, "writing"):
            for axis, now in (("steps", record.step), ("tokens", record.tokens)):
                for name, value in _scalars(record).items():
                    self._writer(axis, now).add_scalar(f"{axis}/{name}", value, now)

    def sync(self) -> None:
        """Write what is held in memory. Raises StorageError."""
        with storage_errors(self._folder, "writing"):
            for writer in self._writers.values():
                writer.flush()

    def close(self) -> None:
        """Write what is held in memory, and close the files. Raises StorageError."""
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


def read_metrics(path: Path) -> list[Record]:
    """Return the records in a file, in its order.

    A last line that was cut is left out, and so are keys that this version does not know. Raises
    BadDataError, naming file and line, for any other line that holds no record; StorageError.
    """
    return [record for _, record in _lines(path)]


def progress_line(record: StepRecord, last_step: int, seconds_left: float) -> str:
    """Return a step as one line for a terminal; lines of a stage have their columns aligned.

    ``seconds_left`` is an estimate of the time that the stage still takes. Utilisation is there if
    a peak is known, masks while they are below 1.
    """
    width = len(f"{last_step:,}")
    norm = f"{record.grad_norm:.{'3f' if record.grad_norm < 100 else '1e'}}"
    speed = f"{record.model_tflops:7.3g} TFLOP/s"
    if record.utilisation is not None:
        speed += f" {record.utilisation:5.1%}"
    left = clock_text(seconds_left)
    parts = [
        f"{record.stage}  {record.step:{width},}/{last_step:,}",
        f"loss {record.loss:7.4f}",
        f"grad {norm:>7}",
        f"lr {record.learning_rate:.2e}",
        f"{_rate(record.tokens_per_second):>5} tok/s",
        speed,
        f"ETA {left:>9}",
        *(f"{dimension} {value:.3f}" for dimension, value in record.masks.items()),
    ]
    return "  ".join(parts)


def _rate(value: float) -> str:
    """Return a number as three digits and a unit, such as ``12.3k``."""
    limit, unit = next(
        ((limit, unit) for limit, unit in _UNITS if value >= 0.9995 * limit), (1.0, "")
    )
    scaled = value / limit
    places = 2 if scaled < 9.995 else 1 if scaled < 99.95 else 0
    return f"{scaled:.{places}f}{unit}"


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


def _kept_lines(path: Path, stage: str, begin: int) -> Iterator[bytes]:
    for line, record in _lines(path):
        if record.step <= begin:
            yield line
        elif record.stage != stage:
            raise OutputExistsError(
                f"holds step {record.step} of the stage {record.stage!r}, "
                f"{stage!r} begins after step {begin}",
                "give this stage a log.metrics of its own",
                where=path,
            )


def _plain(record: Record) -> Json:
    fields = asdict(record)
    kind = {"kind": fields.pop("kind")}
    return kind | {
        name: _word(value) if isinstance(value, float) else value for name, value in fields.items()
    }


def _scalars(record: Record) -> dict[str, float]:
    """Return what a record measured, by name; a mask as ``masks/DIMENSION``."""
    fields = asdict(record)
    masks = fields.pop("masks", {})
    found = {
        name: value
        for name, value in fields.items()
        if isinstance(value, int | float) and name not in COUNTS
    }
    return found | {f"masks/{dimension}": value for dimension, value in masks.items()}


def _word(value: float) -> float | str:
    """Return a number as JSON can have it."""
    if math.isfinite(value):
        return value
    return next(word for word, meant in _WORDS.items() if repr(meant) == repr(value))
