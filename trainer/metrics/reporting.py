"""What is told of a run while it runs: on the terminal, as JSON lines, and for TensorBoard.

Every rank has a reporter, and the first one's speaks. Lines for people go to stderr; nothing goes
to stdout.
"""

import os
import sys
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType

import torch

from flmgrow.text import render
from flmgrow.trainer.metrics.pace import Pace
from flmgrow.trainer.metrics.records import (
    OLD,
    MetricsLog,
    StepRecord,
    TensorBoard,
    ValidationRecord,
    progress_line,
)
from flmgrow.trainer.stage.file import StageFile
from flmgrow.trainer.stage.keys import STAGE_FILE


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

    ``begin`` is the step that it goes on from, ``resumed`` says that it was there before. A context
    manager.
    """

    def __init__(self, stage: StageFile, last: int, begin: int, *, resumed: bool) -> None:
        self._stage, self._last = stage, last
        self.pace = Pace(stage, last)
        self._open = ExitStack()
        self._sinks: list[MetricsLog | TensorBoard] = []
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

    def step(self, record: StepRecord) -> None:
        """Tell of a step: always as a metric, and now and then on the terminal."""
        for sink in self._sinks:
            sink.write(record)
        often = record.step % self._stage.log.every == 0
        if self._told is None or often or record.step == self._last:
            self._told = record.step
            left = self.pace.left(record.step, record.seconds)
            self.note(progress_line(record, self._last, left))

    def validation(self, record: ValidationRecord) -> None:
        """Tell of a validation."""
        for sink in self._sinks:
            sink.write(record)
        self.note(
            f"{record.stage}  step {record.step}  validation loss {record.validation_loss:.4f}"
        )

    def sync(self) -> None:
        """Put what was told on the disk."""
        for sink in self._sinks:
            sink.sync()

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
