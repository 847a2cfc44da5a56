"""What is told of a run while it runs: on the terminal, as JSON lines, and for what draws them.

Every rank has a reporter, and the first one's speaks. Lines for people go to stderr; nothing goes
to stdout.
"""

import os
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType

import torch

from flmgrow.model.wording import clock_text
from flmgrow.text import render
from flmgrow.trainer.metrics.event_files import TensorBoard
from flmgrow.trainer.metrics.log import OLD, MetricsLog
from flmgrow.trainer.metrics.pace import Pace
from flmgrow.trainer.metrics.records import (
    MemoryGrowthRecord,
    SetLoss,
    StepRecord,
    ValidationRecord,
)
from flmgrow.trainer.metrics.services import SERVICES, TrackingService
from flmgrow.trainer.stage.clock import StageProgress
from flmgrow.trainer.stage.file import StageFile
from flmgrow.trainer.stage.keys import STAGE_FILE

_UNITS = ((1e9, "B"), (1e6, "M"), (1e3, "k"))


def say(text: str) -> None:
    """Tell people something, from the first rank, as long as somebody listens."""
    if torch.distributed.get_rank() != 0:
        return
    try:
        print(render(text, STAGE_FILE), file=sys.stderr, flush=True)
    except OSError:  # a pipe that was closed, or a full disk: no reason to stop training
        sys.stderr = Path(os.devnull).open("w")  # noqa: SIM115


class Reporter:
    """Tells of the steps of ``stage`` up to step ``last``.

    ``begin`` is the step that it goes on from, where the stage is so far as ``progress`` says;
    ``resumed`` says that it was there before. A context manager.
    """

    def __init__(
        self, stage: StageFile, last: int, begin: int, progress: StageProgress, *, resumed: bool
    ) -> None:
        self._stage, self._last = stage, last
        self.pace = Pace(stage, last, begin, progress)
        self._open = ExitStack()
        self._sinks: list[MetricsLog | TensorBoard | TrackingService] = []
        self._told: int | None = None
        self.notes: list[str] = []
        """What somebody may not expect of the files that it writes to."""
        if torch.distributed.get_rank() == 0:
            log = MetricsLog(stage.log.metrics, stage.name, begin, resumed=resumed)
            self._sinks.append(self._open.enter_context(log))
            if log.set_aside:
                self.notes.append(
                    f"{stage.log.metrics} tells of {log.set_aside:,} steps of this stage, which "
                    f"begins anew all the same; it is kept as {stage.log.metrics.name}{OLD}"
                )
            if stage.log.tensorboard is not None:
                board = TensorBoard(stage.log.tensorboard)
                self._sinks.append(self._open.enter_context(board))
            for name in SERVICES:
                if getattr(stage.log, name) is not None:
                    service = TrackingService(name, stage, self._warn, resumed=resumed)
                    self._sinks.append(self._open.enter_context(service))

    def step(self, record: StepRecord) -> None:
        """Tell of a step: always as a metric, and now and then on the terminal."""
        for sink in self._sinks:
            sink.write(record)
        often = record.step % self._stage.log.every == 0
        if self._told is None or often or record.step == self._last:
            self._told = record.step
            left = self.pace.left(record.step, record.seconds)
            self.note(progress_line(record, self._last, left))

    def growth(self, record: MemoryGrowthRecord) -> None:
        """Tell of a growth in memory, as a metric."""
        for sink in self._sinks:
            if isinstance(sink, MetricsLog):
                sink.write(record)

    def validation(self, record: ValidationRecord) -> None:
        """Tell of a validation."""
        for sink in self._sinks:
            sink.write(record)
        for line in validation_lines(record):
            self.note(line)

    def sync(self) -> None:
        """Put what was told on the disk."""
        for sink in self._sinks:
            sink.sync()

    def _warn(self, text: str) -> None:
        self.note(f"note: {text}")

    def note(self, text: str) -> None:
        """Tell people something."""
        say(text)

    def __enter__(self) -> "Reporter":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._open.close()


def validation_lines(record: ValidationRecord) -> Iterator[str]:
    """Yield a validation as lines for a terminal: one for each set, the main one's first."""
    main = SetLoss(record.validation_loss, record.bits_per_byte, record.by_corpus)
    for name, found in (record.sets or {"": main}).items():
        parts = [
            record.stage,
            f"step {record.step}",
            f"validation loss {found.loss:.4f}" + (f" on {name}" if name else ""),
            *(() if found.bits_per_byte is None else (f"{found.bits_per_byte:.4f} bits/byte",)),
            *(f"{corpus} {loss:.4f}" for corpus, loss in found.by_corpus.items()),
        ]
        yield "  ".join(parts)


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
